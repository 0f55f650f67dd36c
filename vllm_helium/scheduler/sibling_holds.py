"""Which waiting call is held for a step, because a sibling computes its prefix right now.

Calls that share a prefix often come together. Upstream lets them begin in the same step: whole
blocks are shared even then, but what lies in a block that is being written can only be copied from
the next step on, so every sibling computes it for itself. One step later it is a hit.

A call is held only for tokens that the step being scheduled computes, so the engine never idles for
it, and only so many times, whoever comes.
"""

from __future__ import annotations

from collections.abc import Callable

from vllm.v1.request import Request

MAX_HOLDS = 4
"""Steps one request is held at most; one is enough unless ever longer prefixes come along."""

MAX_HELD_PER_STEP = 64
"""Bounds the lookups of a step; further siblings begin at once."""

_ATTRIBUTE = "helium_num_holds"


class SiblingHolds:
    """Decides who is held.

    Args:
        min_tokens: Fewest tokens worth a step; 0 holds nobody.
        pending_tokens: Tokens of a request that the step being scheduled computes for another one,
            and that the next step's lookup would find.
    """

    def __init__(self, min_tokens: int, pending_tokens: Callable[[Request], int]) -> None:
        self._min_tokens = min_tokens
        self._pending_tokens = pending_tokens
        self._num_held_in_step = 0
        self.num_held = 0
        self.num_tokens = 0

    def step_starts(self) -> None:
        """Called before every step."""
        self._num_held_in_step = 0

    def is_held(self, request: Request) -> bool:
        """Whether a request that could begin in this step is to wait for the next one."""
        num_holds = getattr(request, _ATTRIBUTE, 0)
        if (
            not self._min_tokens
            or request.num_computed_tokens
            or request.num_tokens <= self._min_tokens
            or num_holds >= MAX_HOLDS
            or self._num_held_in_step >= MAX_HELD_PER_STEP
        ):
            return False
        num_tokens = self._pending_tokens(request)
        if num_tokens < self._min_tokens:
            return False
        setattr(request, _ATTRIBUTE, num_holds + 1)
        self._num_held_in_step += 1
        self.num_held += 1
        self.num_tokens += num_tokens
        return True

    def describe(self) -> dict[str, int]:
        """Counts for the status report."""
        return {"num_held": self.num_held, "num_tokens": self.num_tokens}
