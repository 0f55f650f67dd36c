"""Where profiles, caches and runs of a user are kept."""

from __future__ import annotations

import os
from pathlib import Path


def data_folder() -> Path:
    """Returns ``$XDG_DATA_HOME/vllm-helium``, by default ``~/.local/share/vllm-helium``.

    Source: XDG Base Directory Specification; a relative path in the variable is ignored.
    """
    home = Path(os.environ.get("XDG_DATA_HOME", ""))
    base = home if home.is_absolute() else Path.home() / ".local" / "share"
    return base / "vllm-helium"
