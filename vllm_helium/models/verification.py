"""Checks the converted SmolLM2 against transformers' own GGUF loader, an independent reader.

Run by ``python -m vllm_helium.models --verify``; the result is kept beside the weights.
"""

from __future__ import annotations

import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

from helium.errors import ConfigError
from vllm_helium.models.cache import models_dir
from vllm_helium.models.smollm2 import (
    GGUF_SHA256,
    WEIGHTS_SHA256,
    ensure_smollm2,
    smollm2_gguf,
)

VERIFICATION_FILE = "verification.json"
MAX_LOGIT_DIFFERENCE = 1e-4
"""Bound on any logit's difference, in a range of about 30; equal weights and code should give 0."""

PROMPTS = (
    "The capital of France is",
    "<|im_start|>user\nName three colours of the rainbow.<|im_end|>\n<|im_start|>assistant\n",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
)
TEXTS = (
    "Hello, world! It's 12345 o'clock; they'll say 3.14159 or 1,000,000.",
    "    indented\n\n\n\ttabs  and   runs of spaces   \n",
    "Größe, naïve café, piñata — “quotes” … and 'single' ones",
    "日本語のテキスト、한국어, русский язык, עברית, العربية",
    "emoji 😀👩‍👩‍👧 and symbols ∑∫√ ≠ ≤ €£¥",
    "for i in range(10):\n    print(f'{i:>4}')  # comment\n",
    "http://example.com/a?b=c&d=e#f user_name@example.org",
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n",
    "",
)


def verify_smollm2(cache_dir: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Compares logits and token ids with transformers' GGUF loader and records the result.

    Takes about half a minute and 2 GB of memory. The texts hold no numerals beyond ASCII: there the
    reference differs by design, because transformers ignores the pre-tokenizer's name and does not
    cut such characters off.

    Returns:
        What ``verification.json`` in the model folder then holds.

    Raises:
        ConfigError: They differ, or transformers cannot read GGUF here (it needs accelerate).
    """
    try:
        import accelerate  # noqa: F401
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ConfigError(
            f"verification needs torch, transformers and accelerate: {error}; install it"
        ) from None
    folder = ensure_smollm2(cache_dir)
    with smollm2_gguf(models_dir(cache_dir)) as gguf_path:
        source = {"pretrained_model_name_or_path": gguf_path.parent, "gguf_file": gguf_path.name}
        tokenizer = AutoTokenizer.from_pretrained(folder)
        _compare_tokenizers(tokenizer, AutoTokenizer.from_pretrained(**source))
        batches = [tokenizer(text, return_tensors="pt").input_ids for text in PROMPTS]
        with torch.inference_mode():
            ours = _logits(AutoModelForCausalLM.from_pretrained(folder, dtype="float32"), batches)
            theirs = _logits(
                AutoModelForCausalLM.from_pretrained(**source, dtype="float32"), batches
            )
    difference = max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))
    if not difference <= MAX_LOGIT_DIFFERENCE:
        raise ConfigError(
            f"SmolLM2: logits differ from transformers' GGUF loader by up to {difference:.3g}, "
            f"expected at most {MAX_LOGIT_DIFFERENCE}; the conversion is wrong"
        )
    result = {
        "gguf_sha256": GGUF_SHA256,
        "weights_sha256": WEIGHTS_SHA256,
        "max_logit_difference": difference,
        "logit_range": [min(x.min().item() for x in ours), max(x.max().item() for x in ours)],
        "next_tokens": [tokenizer.decode(x[0, -1].argmax().item()) for x in ours],
        "prompts": list(PROMPTS),
        "num_texts_tokenized_alike": len(TEXTS),
        "versions": {
            name: metadata.version(name) for name in ("gguf", "tokenizers", "torch", "transformers")
        },
    }
    _write_atomically(folder / VERIFICATION_FILE, json.dumps(result, indent=2) + "\n")
    return result


def _logits(model: Any, batches: list[Any]) -> list[Any]:
    return [model(batch).logits for batch in batches]


def _compare_tokenizers(ours: Any, theirs: Any) -> None:
    for text in TEXTS:
        expected, found = theirs(text).input_ids, ours(text).input_ids
        if found != expected:
            raise ConfigError(
                f"SmolLM2: {text!r} becomes {found}, transformers' GGUF loader gives {expected}; "
                "the tokenizer is wrong"
            )


def _write_atomically(path: Path, content: str) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(content, encoding="utf-8")
    partial.replace(path)
