"""Where models are kept in the user's cache."""

from __future__ import annotations

import os
from pathlib import Path


def models_dir(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns the folder for models and creates it.

    Args:
        cache_dir: The project's cache; ``None`` is ``$XDG_CACHE_HOME/vllm-helium``, and
            ``~/.cache/vllm-helium`` where the variable is not set.
    """
    if cache_dir is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vllm-helium"
    else:
        root = Path(cache_dir)
    path = root / "models"
    path.mkdir(parents=True, exist_ok=True)
    return path
