"""Dispatch as Parrot does it: dataflow between calls, and calls go where their prefix is.

Written from the paper (arXiv 2405.19888, §5: Algorithm 1), not from its code. What is kept: a call
is sent as soon as its variables are there; engines that already serve or cache the longest shared
prefix are preferred, and among them the least loaded. Prefixes are compared at the ends of messages
and of every 256 words inside them. Left out: latency classes (every call here belongs to an offline
batch, which Parrot would treat as throughput-oriented) and its attention kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from zlib import crc32

from helium.plan.calls import Call
from helium.runtime.backend import EngineBackend, ModelAnswer, ModelCall

_WORDS_PER_MARK = 256


class ParrotDispatcher:
    """Chooses the engine of every call."""

    def __init__(self, engines: Sequence[EngineBackend]) -> None:
        self._engines = list(engines)
        self._prefixes: list[set[int]] = [set() for _ in self._engines]
        self._loads = [0] * len(self._engines)

    async def ask(self, operator: str, row: int, call: Call) -> ModelAnswer:
        """Answers a call; ``operator`` and ``row`` are not looked at."""
        marks = list(_marks(call)) if len(self._engines) > 1 else []
        shared = [_num_shared(marks, prefixes) for prefixes in self._prefixes]
        size = sum(len(content) for _, content in call.messages) + len(call.prompt or "")
        engine = min(range(len(self._engines)), key=lambda e: (-shared[e], self._loads[e], e))
        self._prefixes[engine].update(marks)
        self._loads[engine] += size
        try:
            return await self._engines[engine].call(ModelCall(call))
        finally:
            self._loads[engine] -= size


def _marks(call: Call) -> Iterator[int]:
    """Yields a hash of the prompt up to each mark, from the start on."""
    state = 0
    for role, content in call.messages or (("", call.prompt or ""),):
        state = crc32(role.encode(), state)
        words = content.split()
        for start in range(0, max(1, len(words)), _WORDS_PER_MARK):
            part = " ".join(words[start : start + _WORDS_PER_MARK])
            state = crc32(part.encode(), state)
            yield state


def _num_shared(marks: Sequence[int], known: set[int]) -> int:
    count = 0
    for mark in marks:
        if mark not in known:
            break
        count += 1
    return count
