"""Why lookups fell short, counted once per admitted request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm_helium.bounded_series import BoundedSeries
from vllm_helium.prefix_cache.index import MISS_REASONS, Match

ORDINARY = ("", "")
"""Workflow and operator of a request that no plan knows."""


@dataclass
class OperatorCounts:
    """Prompt tokens of one operator's requests: found, and not found by reason."""

    num_hit_tokens: int = 0
    num_miss_tokens: dict[str, int] = field(default_factory=dict)

    def add(self, more: OperatorCounts) -> None:
        """Adds another operator's counts."""
        self.num_hit_tokens += more.num_hit_tokens
        for reason, num_tokens in more.num_miss_tokens.items():
            self.miss(reason, num_tokens)

    def miss(self, reason: str, num_tokens: int) -> None:
        """Counts tokens that were not found."""
        self.num_miss_tokens[reason] = self.num_miss_tokens.get(reason, 0) + num_tokens


@dataclass
class MissCounts:
    """Requests by the reason their lookup ended, and tokens that had to be computed for it.

    Attributes:
        num_requests: By reason; ``none`` counts full hits.
        num_tokens: Prompt tokens not reused, by reason.
        evicted_as: Requests by what the missing block was when it was evicted.
        operators: Tokens by workflow and operator, those found on the host too.
    """

    num_requests: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MISS_REASONS, 0))
    num_tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MISS_REASONS, 0))
    evicted_as: dict[str, int] = field(default_factory=dict)
    operators: BoundedSeries[OperatorCounts] = field(
        default_factory=lambda: BoundedSeries(OperatorCounts)
    )

    def record(
        self, match: Match, num_prompt_tokens: int, operator: tuple[str, str] = ORDINARY
    ) -> None:
        """Counts one admission; a request that was preempted is admitted, and counted, again."""
        self.num_requests[match.reason] += 1
        num_found_tokens = match.num_tokens + match.num_host_tokens
        self.num_tokens[match.reason] += num_prompt_tokens - num_found_tokens
        counts = self.operators.of(operator)
        counts.num_hit_tokens += num_found_tokens
        counts.miss(match.reason, num_prompt_tokens - num_found_tokens)
        if match.evicted_as is not None:
            self.evicted_as[match.evicted_as] = self.evicted_as.get(match.evicted_as, 0) + 1

    def describe_operators(self) -> list[tuple[str, str, int, dict[str, int]]]:
        """Workflow, operator, hit tokens and missed tokens by reason, as plain values."""
        return [
            (*operator, counts.num_hit_tokens, dict(counts.num_miss_tokens))
            for operator, counts in self.operators.items()
        ]


def describe_match(match: Match, num_prompt_tokens: int) -> dict[str, Any]:
    """One request's lookup as plain values, for its report.

    ``miss_token`` is where the prompt leaves the cached path, ``evicted_as`` and ``evicted_ago_s``
    what the missing block was and how long ago it went; both only where one was evicted.
    """
    report: dict[str, Any] = {
        "hit_tokens": match.num_tokens,
        "miss_tokens": num_prompt_tokens - match.num_tokens,
        "reason": match.reason,
        "miss_token": match.miss_token,
    }
    if match.evicted_as is not None:
        report["evicted_as"] = match.evicted_as
        report["evicted_ago_s"] = match.evicted_ago_s
    return report
