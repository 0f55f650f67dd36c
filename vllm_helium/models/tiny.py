"""Tiny random Llama models for tests: a model folder in milliseconds, with no download.

Token ids are legible: id ``b`` is the byte ``b``, and four markup tokens follow. The weights are
large enough for attention to matter, so a greedy output depends on the whole prompt and a wrong
byte of KV cache shows in it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helium.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

NUM_BYTES = 256
MARKUP = ("<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>")
MIN_VOCAB = NUM_BYTES + len(MARKUP)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WEIGHT_STD = 0.2


def make_tiny_llama(
    path: str | os.PathLike[str],
    *,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 2,
    kv_heads: int = 2,
    vocab: int = MIN_VOCAB,
    max_positions: int = 8192,
    seed: int = 0,
) -> Path:
    """Writes a random Llama model (float32) with a byte-level tokenizer.

    Equal arguments give equal files.

    Args:
        path: The folder to write; created where needed.
        hidden: Hidden size; the head size is ``hidden / heads``.
        vocab: At least 260; ids beyond the bytes and the markup are words no text encodes to.

    Returns:
        ``path``.

    Raises:
        ConfigError: The sizes do not fit together.
    """
    if vocab < MIN_VOCAB:
        raise ConfigError(f"tiny llama: vocab is {vocab}, bytes and markup take {MIN_VOCAB}")
    if hidden % (2 * heads) or heads % kv_heads:
        raise ConfigError(
            f"tiny llama: {heads} heads must divide hidden={hidden} into an even size, and "
            f"kv_heads={kv_heads} must divide heads"
        )
    from safetensors.numpy import save_file

    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    bos, eos = (NUM_BYTES + MARKUP.index(token) for token in ("<|bos|>", "<|eos|>"))
    ids = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": eos}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "dtype": "float32",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "max_position_embeddings": max_positions,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": vocab,
        **ids,
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|eos|>",
        "model_max_length": max_positions,
        "pad_token": "<|eos|>",
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", ids)
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    _byte_tokenizer(vocab).save(str(folder / "tokenizer.json"))
    weights = _random_weights(config, hidden // heads, seed)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _random_weights(config: dict[str, Any], head_dim: int, seed: int) -> dict[str, np.ndarray]:
    import numpy as np

    generator = np.random.default_rng(seed)
    hidden, inner, vocab = (
        config[key] for key in ("hidden_size", "intermediate_size", "vocab_size")
    )
    kv_size = config["num_key_value_heads"] * head_dim
    weights = {}

    def add(name: str, *shape: int) -> None:
        values = generator.standard_normal(shape, dtype=np.float32)
        weights[f"{name}.weight"] = values * np.float32(WEIGHT_STD)

    def add_norm(name: str) -> None:
        weights[f"{name}.weight"] = np.ones(hidden, dtype=np.float32)

    add("model.embed_tokens", vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        add_norm(f"{prefix}.input_layernorm")
        add(f"{prefix}.self_attn.q_proj", hidden, hidden)
        add(f"{prefix}.self_attn.k_proj", kv_size, hidden)
        add(f"{prefix}.self_attn.v_proj", kv_size, hidden)
        add(f"{prefix}.self_attn.o_proj", hidden, hidden)
        add_norm(f"{prefix}.post_attention_layernorm")
        add(f"{prefix}.mlp.gate_proj", inner, hidden)
        add(f"{prefix}.mlp.up_proj", inner, hidden)
        add(f"{prefix}.mlp.down_proj", hidden, inner)
    add_norm("model.norm")
    # A head of its own: tied to the embeddings, the model would mostly repeat its last token.
    add("lm_head", vocab, hidden)
    return weights


def _byte_tokenizer(vocab: int) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    entries = {character: byte for byte, character in enumerate(_byte_characters())}
    for token in MARKUP:
        entries[token] = len(entries)
    for extra in range(vocab - MIN_VOCAB):
        entries[f"<extra_{extra}>"] = len(entries)
    tokenizer = Tokenizer(models.BPE(entries, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in MARKUP]
    )
    return tokenizer


def _byte_characters() -> list[str]:
    """The character that stands for each byte in byte-level vocabularies.

    Printable Latin-1 stands for itself, the others for the characters from U+0100 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(stand_ins)) for byte in range(NUM_BYTES)]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
