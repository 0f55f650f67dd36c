"""When a call is made again: how often, after how long, and how many such calls in all."""

from __future__ import annotations

import random

import msgspec

from helium.errors import ConfigError


class RetryPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Exponential back-off under a budget.

    Attributes:
        max_attempts: Times one call is made at most; the default lasts some 15 s, a restart of a
            small server.
        base_delay_s: Pause before the second attempt; it doubles with every further one.
        max_delay_s: Longest pause.
        budget_reserve: Retries that are always allowed.
        budget_ratio: Further retries allowed per call made, so that a server in trouble sees at
            most this much more traffic.
    """

    max_attempts: int = 6
    base_delay_s: float = 0.5
    max_delay_s: float = 30.0
    budget_reserve: int = 100
    budget_ratio: float = 0.5

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ConfigError(f"retries: max_attempts is {self.max_attempts}; give at least 1")
        for field in ("base_delay_s", "max_delay_s", "budget_reserve", "budget_ratio"):
            value = getattr(self, field)
            if not value >= 0:
                raise ConfigError(f"retries: {field} is {value}; it cannot be negative")

    def delay_s(self, attempt: int) -> float:
        """Returns the pause after attempt number ``attempt`` (from 1): random in its upper half."""
        longest = min(self.max_delay_s, self.base_delay_s * 2.0 ** min(attempt - 1, 60))
        return longest * (0.5 + random.random() / 2)


NO_RETRIES = RetryPolicy(max_attempts=1)


class RetryBudget:
    """Counts calls and retries; shared by all calls of a dispatcher."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._ratio = policy.budget_ratio
        self._left = float(policy.budget_reserve)

    def earn(self) -> None:
        """Notes a call made for the first time."""
        self._left += self._ratio

    def spend(self) -> bool:
        """Takes one retry; returns whether there was one left."""
        if self._left < 1:
            return False
        self._left -= 1
        return True
