"""What an engine serves, as one string: the prompt cache holds answers of equal ones together."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

from helium.runtime.revisions import RevisionOf


class Served(Protocol):
    """What can tell what it serves at present; our backends do."""

    async def weights(self) -> str:
        """Names the weights: empty as they were loaded at the start, else unique."""

    def adapter(self, model: str | None) -> Any:
        """Returns the ``LoRARequest`` of a name, or ``None``."""


class EngineRevisions:
    """The revision of everything an engine serves: its model, weights changed in place, adapters.

    Files of an adapter count as they are when it is first asked for under its id; loading it again
    gives it another id, or names other weights.
    """

    def __init__(self, vllm_config: Any, tokenizer: Any, served: Served) -> None:
        """Reads the model's files; asks the engine nothing yet."""
        self._model = model_revision(vllm_config, tokenizer)
        self._served = served
        self._adapters: dict[tuple[str, int], str] = {}

    async def __call__(self) -> RevisionOf:
        """Asks the engine; see ``helium.runtime.revisions``."""
        weights = await self._served.weights()
        model = f"{self._model} {weights}" if weights.strip() else self._model

        def revision_of(name: str | None) -> str:
            adapter = self._served.adapter(name)
            return model if adapter is None else f"{model} {self._describe(adapter)}"

        return revision_of

    def _describe(self, adapter: Any) -> str:
        key = adapter.lora_path, adapter.lora_int_id
        if key not in self._adapters:
            if len(self._adapters) >= _MAX_ADAPTERS:
                self._adapters.clear()
            described = [adapter.lora_name, adapter.lora_path, _files(adapter.lora_path)]
            self._adapters[key] = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:24]
        return self._adapters[key]


_MAX_ADAPTERS = 4096


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
