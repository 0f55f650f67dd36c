"""What every step of a real engine computed and took, read off its scheduler."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from helium.cost import MeasuredStep


class StepLog:
    """Watches a scheduler in this process; ``steps`` holds what has ended.

    Up to two steps are under way at once where scheduling is asynchronous, so a step's time runs
    from its scheduling or from the end of the step before, whichever is later.

    Attributes:
        num_prefill_tokens: Prompt tokens computed, those computed anew after a preemption included.
    """

    def __init__(self, scheduler: Any) -> None:
        """Wraps ``schedule`` and ``update_from_output`` of ``scheduler``."""
        self.steps: list[MeasuredStep] = []
        self.num_prefill_tokens = 0
        self._scheduler = scheduler
        self._under_way: deque[tuple[int, tuple[int, float, int, int], float]] = deque()
        self._last_end_s = 0.0
        self._schedule = scheduler.schedule
        self._update = scheduler.update_from_output
        scheduler.schedule = self._watched_schedule
        scheduler.update_from_output = self._watched_update

    def clear(self) -> None:
        """Forgets the steps that have ended."""
        self.steps = []
        self.num_prefill_tokens = 0

    def _watched_schedule(self, *arguments: Any, **options: Any) -> Any:
        start_s = time.perf_counter()
        scheduled = self._schedule(*arguments, **options)
        if scheduled.total_num_scheduled_tokens:
            self._under_way.append((id(scheduled), self._work(scheduled), start_s))
        return scheduled

    def _watched_update(self, scheduled: Any, *arguments: Any, **options: Any) -> Any:
        results = self._update(scheduled, *arguments, **options)
        if self._under_way and self._under_way[0][0] == id(scheduled):
            _, work, start_s = self._under_way.popleft()
            end_s = time.perf_counter()
            ms = (end_s - max(start_s, self._last_end_s)) * 1e3
            self._last_end_s = end_s
            self.num_prefill_tokens += work[0]
            self.steps.append(MeasuredStep(*work, ms=ms))
        return results

    def _work(self, scheduled: Any) -> tuple[int, float, int, int]:
        requests = self._scheduler.requests
        prefill = context = decode = decode_context = 0
        for request_id, num_tokens in scheduled.num_scheduled_tokens.items():
            request = requests[request_id]
            computed = request.num_computed_tokens  # this step's included
            if num_tokens == 1 and computed > request.num_prompt_tokens:
                decode += 1
                decode_context += computed
            else:
                prefill += num_tokens
                context += num_tokens * (2 * computed - num_tokens)
        return prefill, context / (2 * prefill) if prefill else 0.0, decode, decode_context
