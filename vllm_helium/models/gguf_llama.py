"""Turns a Llama GGUF file into a Hugging Face folder: weights, configuration, tokenizer.

Weights are written as float32: it holds a dequantized value (a float16 scale times a small
integer, plus a float16 offset) with one rounding in the last bit, where bfloat16 keeps 8 bits of
it, and it is what the CPU engine runs in.

Source: the GGUF format (ggml), and llama.cpp's conventions for the ``llama`` architecture: rows of
the q and k projections are permuted for its rotary embedding, the pre-tokenizer is named by
``tokenizer.ggml.pre``.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helium.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader
    from tokenizers import Tokenizer

CONTROL_TOKEN = 3
"""``tokenizer.ggml.token_type`` of tokens that only markup may produce."""

_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_MODEL_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}


def convert_llama_gguf(gguf_path: Path, target: Path) -> str:
    """Writes the model in ``gguf_path`` into the existing folder ``target``.

    Args:
        gguf_path: A Llama model with a byte-level BPE vocabulary (``gpt2``, pre-tokenizer
            ``smollm``), quantized in any way gguf can undo.
        target: Receives config.json, generation_config.json, model.safetensors, tokenizer.json and
            tokenizer_config.json.

    Returns:
        ``digest_tensors`` of the weights.

    Raises:
        ConfigError: gguf is not installed, or the file holds another kind of model.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ConfigError(
            "reading a GGUF model needs the package gguf, which is not installed; "
            "run `pip install gguf`"
        ) from None
    reader = GGUFReader(gguf_path)
    _check_kind(reader, gguf_path)
    config = _model_config(reader)
    tensors = _read_tensors(reader, config)
    config["tie_word_embeddings"] = "lm_head.weight" not in tensors
    _write_json(target / "config.json", config)
    _write_json(target / "generation_config.json", _token_ids(reader))
    _write_json(target / "tokenizer_config.json", _tokenizer_config(reader))
    build_tokenizer(reader).save(str(target / "tokenizer.json"))
    _save_tensors(target / "model.safetensors", tensors)
    return digest_tensors(tensors)


def build_tokenizer(reader: GGUFReader) -> Tokenizer:
    """Rebuilds the fast tokenizer from the vocabulary and merges in the GGUF metadata.

    The ``smollm`` pre-tokenizer cuts every number character off by itself, then splits as GPT-2.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = _field(reader, "tokenizer.ggml.token_type")
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == CONTROL_TOKEN
        ]
    )
    return tokenizer


def digest_tensors(tensors: dict[str, np.ndarray]) -> str:
    """Returns a SHA-256 over names, dtypes, shapes and bytes: the weights, however they are stored.

    Args:
        tensors: C-contiguous or not; hashed in order of their names.
    """
    import numpy as np

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()


def _check_kind(reader: GGUFReader, path: Path) -> None:
    for key, expected in (
        ("general.architecture", "llama"),
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.pre", "smollm"),
    ):
        found = _field(reader, key)
        if found != expected:
            raise ConfigError(
                f"{path.name}: `{key}` is {found!r}, this converter knows only {expected!r}"
            )


def _field(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise ConfigError(f"the GGUF file lacks `{key}`; it is not a complete Llama model")
    return field.contents()


def _token_ids(reader: GGUFReader) -> dict[str, int]:
    return {
        "bos_token_id": _field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _field(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": _field(reader, "tokenizer.ggml.padding_token_id"),
    }


def _model_config(reader: GGUFReader) -> dict[str, Any]:
    import numpy as np

    # The epsilon is stored as float32; its shortest decimal form is the number that was meant.
    epsilon = np.float32(_field(reader, "llama.attention.layer_norm_rms_epsilon"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "dtype": "float32",
        "hidden_act": "silu",
        "hidden_size": _field(reader, "llama.embedding_length"),
        "intermediate_size": _field(reader, "llama.feed_forward_length"),
        "max_position_embeddings": _field(reader, "llama.context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": _field(reader, "llama.attention.head_count"),
        "num_hidden_layers": _field(reader, "llama.block_count"),
        "num_key_value_heads": _field(reader, "llama.attention.head_count_kv"),
        "rms_norm_eps": float(str(epsilon)),
        "rope_theta": _field(reader, "llama.rope.freq_base"),
        "vocab_size": len(_field(reader, "tokenizer.ggml.tokens")),
        **_token_ids(reader),
    }


def _tokenizer_config(reader: GGUFReader) -> dict[str, Any]:
    tokens = _field(reader, "tokenizer.ggml.tokens")
    ids = _token_ids(reader)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "bos_token": tokens[ids["bos_token_id"]],
        "chat_template": _field(reader, "tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "eos_token": tokens[ids["eos_token_id"]],
        "model_max_length": _field(reader, "llama.context_length"),
        "pad_token": tokens[ids["pad_token_id"]],
        "unk_token": tokens[_field(reader, "tokenizer.ggml.unknown_token_id")],
    }


def _read_tensors(reader: GGUFReader, config: dict[str, Any]) -> dict[str, np.ndarray]:
    import numpy as np
    from gguf.quants import dequantize

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        stem, _, suffix = tensor.name.rpartition(".")
        if suffix != "weight":
            raise ConfigError(f"the GGUF file has a tensor {tensor.name!r}; only weights are known")
        kind = stem.rpartition(".")[2]
        if kind in heads:
            weight = _undo_rotary_permutation(weight, heads[kind])
        tensors[f"{_tensor_name(stem)}.weight"] = np.ascontiguousarray(weight)
    return tensors


def _tensor_name(stem: str) -> str:
    parts = stem.split(".")
    if len(parts) == 1 and parts[0] in _MODEL_TENSORS:
        return _MODEL_TENSORS[parts[0]]
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in _LAYER_TENSORS:
        return f"model.layers.{int(parts[1])}.{_LAYER_TENSORS[parts[2]]}"
    raise ConfigError(f"the GGUF file has a tensor {stem!r}, which a plain Llama model has not")


def _undo_rotary_permutation(weight: np.ndarray, heads: int) -> np.ndarray:
    """Puts rows back into halves.

    llama.cpp rotates neighbouring rows of a head (0, 1), Hugging Face rotates a row of the first
    half with its counterpart in the second: row ``2 i + h`` there is row ``h * half + i`` here.

    Args:
        weight: float32 [heads * head_dim, hidden].
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _save_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    save_file(tensors, path, metadata={"format": "pt"})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
