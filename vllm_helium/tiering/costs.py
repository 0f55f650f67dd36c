"""What moving a block costs against computing it again, and waiting against being waited for.

Steps are timed where they are scheduled: in a busy engine the time between two schedules is a
step's. Nothing is known before the first steps; then loading is taken to be cheaper, as it is on
every device with a link of some GB/s.
"""

from __future__ import annotations

from dataclasses import dataclass

MIN_PREFILL_TOKENS = 64
"""Prompt tokens from which a step's time tells what a prompt token takes."""

_WEIGHT = 0.1
_MAX_FACTOR = 10.0
"""A gap of so many usual steps is no step: the engine had nothing to do."""


@dataclass
class StepCosts:
    """Running estimates of one engine.

    Attributes:
        load_s: Seconds that the link takes for a block.
        step_s: Seconds of a step; ``None`` before two steps ran.
        prefill_token_s: Seconds of a step per prompt token computed in it; ``None`` before a step
            with many of them.
    """

    load_s: float
    step_s: float | None = None
    prefill_token_s: float | None = None
    _last_s: float | None = None
    _num_prefill_tokens: int = 0

    def step_scheduled(self, now_s: float, num_tokens: int, num_prefill_tokens: int) -> None:
        """Notes that a step was scheduled; the one scheduled before it has taken until now.

        Args:
            num_tokens: Of this step; 0 where nothing runs, and the time that follows is idle.
            num_prefill_tokens: Those of prompts among them.
        """
        if self._last_s is not None and now_s > self._last_s:
            step_s = now_s - self._last_s
            if self.step_s is None or step_s <= _MAX_FACTOR * self.step_s:
                self.step_s = _average(self.step_s, step_s)
                if self._num_prefill_tokens >= MIN_PREFILL_TOKENS:
                    token_s = step_s / self._num_prefill_tokens
                    self.prefill_token_s = _average(self.prefill_token_s, token_s)
        self._last_s = now_s if num_tokens else None
        self._num_prefill_tokens = num_prefill_tokens

    def is_load_cheaper(self, num_blocks: int, num_tokens: int) -> bool:
        """Whether loading blocks takes less time than computing their tokens."""
        if self.prefill_token_s is None:
            return True
        return num_blocks * self.load_s <= num_tokens * self.prefill_token_s

    def is_wait_cheaper(self, num_blocks: int, num_running: int, num_waiting: float = 1.0) -> bool:
        """Whether one step's wait of some requests costs less than a load costs all that run."""
        if self.step_s is None:
            return False
        return num_running * num_blocks * self.load_s > num_waiting * self.step_s

    def saved_s(self, num_blocks: int, num_tokens: int) -> float:
        """Estimated seconds that loading saves; 0 as long as nothing is known."""
        if self.prefill_token_s is None:
            return 0.0
        return num_tokens * self.prefill_token_s - num_blocks * self.load_s


def _average(before: float | None, value: float) -> float:
    return value if before is None else before + _WEIGHT * (value - before)
