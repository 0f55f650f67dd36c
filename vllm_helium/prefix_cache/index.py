"""The compiled prefix index; see ``csrc/include/helium/prefix_index.h`` for its contract."""

from __future__ import annotations

try:
    from vllm_helium._core import MISS_REASONS, PLACES, Match, PrefixIndex, TokenBuffer
except ImportError as error:
    raise ImportError(
        "vllm_helium._core, the compiled prefix index, is not built for this Python; "
        "run `pip install -e .` (or `pip install .`) in the repository"
    ) from error

__all__ = ["MISS_REASONS", "NO_BLOCK", "NO_TAG", "PLACES", "Match", "PrefixIndex", "TokenBuffer"]

NO_BLOCK = -1
"""Parent of a prompt's first block."""
NO_TAG = -1
"""Tag of blocks that belong to no plan."""
