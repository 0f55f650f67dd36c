"""What an engine serves, as one string: the prompt cache holds answers of equal ones together."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def model_revision(vllm_config: Any, tokenizer: Any) -> str:
    """Returns a digest of everything that shapes outputs: weights, precision, chat template.

    A model in a local folder counts with the sizes and times of its files, so that weights that are
    written anew are another revision.
    """
    model = vllm_config.model_config
    described = {
        "model": model.model,
        "revision": model.revision,
        "files": _files(model.model),
        "dtype": str(model.dtype),
        "quantization": model.quantization,
        "overrides": repr(model.hf_overrides),
        "tokenizer": [model.tokenizer, model.tokenizer_revision, _files(model.tokenizer)],
        "max_model_len": model.max_model_len,
        "generation_config": [model.generation_config, repr(model.override_generation_config)],
        "kv_cache_dtype": str(vllm_config.cache_config.cache_dtype),
        "chat_template": repr(getattr(tokenizer, "chat_template", None)),
    }
    raw = json.dumps(described, sort_keys=True, default=repr).encode()
    return f"{Path(str(model.model)).name}@{hashlib.sha256(raw).hexdigest()[:24]}"


def _files(name: Any) -> list[tuple[str, int, int]]:
    folder = Path(str(name))
    if not folder.is_dir():
        return []
    stats = ((path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file())
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
