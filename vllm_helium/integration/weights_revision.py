"""Hook ``weights-revision``: weights that change in place are another revision of the model.

A worker's methods are upstream's and the user's, so any call to the workers may change weights but
for those known not to. A revision too many costs answers that could have been kept, one too few
would give wrong ones.
"""

from __future__ import annotations

from typing import Any

_HARMLESS = frozenset(
    {
        "compute_weight_checksums",
        "init_weight_transfer_engine",
        "shutdown_weight_transfer_engine",
    }
)
"""Methods of workers that leave the weights as they are."""


def changes_weights(method: Any) -> bool:
    """Whether a call to the workers, by name or as a function, may change weights."""
    return not isinstance(method, str) or method not in _HARMLESS


def note_weights(scheduler: Any, may_change: bool) -> None:
    """Tells a scheduler of ours before weights change; no step runs until they have."""
    if may_change:
        note = getattr(scheduler, "weights_may_change", None)
        if note is not None:
            note()
