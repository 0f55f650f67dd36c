"""A model folder without weights: the shape of Qwen3-8B, and a tokenizer of whole words.

Every id is a word, and a text of words separated by white space is as many tokens as words. So
what the model writes has the same tokens where a later prompt repeats it, however meaningless, and
prompts are as long as their words say. Lengths published in tokens are reached by scaling texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

TOKENS_PER_WORD = 1.33
"""Of English under usual tokenizers: the factor on the lengths of texts."""

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

QWEN3_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 12_288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
    "max_position_embeddings": 40_960,
}
"""Source: the config.json that Qwen/Qwen3-8B is published with."""

TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 4096,
    "max_position_embeddings": 40_960,
}
"""For trying the program without a GPU."""

SHAPES = {"Qwen3-8B": QWEN3_8B, "tiny": TINY}

_WORD = re.compile(r"\n|[^\s]+")


def words_of(texts: Iterable[str]) -> list[str]:
    """Returns the different words of some texts, in order of appearance; a line break is one."""
    found: dict[str, None] = {}
    for text in texts:
        found.update(dict.fromkeys(_WORD.findall(text)))
    return list(found)


def write_model(folder: Path, shape: str, words: Iterable[str]) -> Path:
    """Writes config and tokenizer; weights are left to ``load_format="dummy"``.

    Args:
        shape: One of ``SHAPES``.
        words: What prompts consist of; other words are all one token.

    Returns:
        ``folder``.

    Raises:
        ValueError: There are more words than the vocabulary has room for.
    """
    sizes = SHAPES[shape]
    vocabulary = _vocabulary(words, sizes["vocab_size"])
    folder.mkdir(parents=True, exist_ok=True)
    ids = {"bos_token_id": None, "eos_token_id": vocabulary[SPECIAL[2]]}
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000,
        "rope_scaling": None,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        **sizes,
        **ids,
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": SPECIAL[2],
        "model_max_length": sizes["max_position_embeddings"],
        "pad_token": SPECIAL[0],
        "unk_token": SPECIAL[0],
    }
    for name, content in (
        ("config.json", config),
        ("generation_config.json", ids),
        ("tokenizer_config.json", tokenizer_config),
    ):
        (folder / name).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    _tokenizer(vocabulary).save(str(folder / "tokenizer.json"))
    return folder


def _vocabulary(words: Iterable[str], size: int) -> dict[str, int]:
    # The ends of the vocabulary are where a model without training would look first, so the
    # special tokens stay away from them.
    known = list(dict.fromkeys(("\n", "system", "user", "assistant", *words)))
    known = [word for word in known if word not in SPECIAL]
    if len(known) + len(SPECIAL) > size:
        raise ValueError(f"{len(known)} words do not fit a vocabulary of {size}; use fewer rows")
    taken = set(known)
    fillers = (f"w{number}" for number in range(2 * size) if f"w{number}" not in taken)
    made_up = [next(fillers) for _ in range(size - len(known) - len(SPECIAL))]
    half = len(made_up) // 2
    ordered = [*made_up[:half], *SPECIAL, *known, *made_up[half:]]
    return {word: number for number, word in enumerate(ordered)}


def _tokenizer(vocabulary: dict[str, int]) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n"), "isolated"),
            pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed"),
        ]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    )
    return tokenizer
