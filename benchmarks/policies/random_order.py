"""Waiting calls in random order. Source: Helium, §7 (the baseline ``Random``)."""

from __future__ import annotations

import hashlib
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request


class RandomOrderScheduler(AsyncScheduler):
    """Every call draws its place among those that wait; the draw is seeded by its id."""

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        if len(self.waiting) > 1:
            ordered = sorted(self.waiting, key=_draw)
            self.waiting.clear()
            self.waiting.extend(ordered)
        return super().schedule(*args, **kwargs)


def _draw(request: Request) -> bytes:
    return hashlib.blake2b(request.request_id.encode(), digest_size=8).digest()
