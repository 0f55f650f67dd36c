"""Why lookups fell short, counted once per admitted request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm_helium.prefix_cache.index import MISS_REASONS, Match


@dataclass
class MissCounts:
    """Requests by the reason their lookup ended, and tokens that had to be computed for it.

    Attributes:
        num_requests: By reason; ``none`` counts full hits.
        num_tokens: Prompt tokens not reused, by reason.
        evicted_as: Requests by what the missing block was when it was evicted.
    """

    num_requests: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MISS_REASONS, 0))
    num_tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MISS_REASONS, 0))
    evicted_as: dict[str, int] = field(default_factory=dict)

    def record(self, match: Match, num_prompt_tokens: int) -> None:
        self.num_requests[match.reason] += 1
        num_found_tokens = match.num_tokens + match.num_host_tokens
        self.num_tokens[match.reason] += num_prompt_tokens - num_found_tokens
        if match.evicted_as is not None:
            self.evicted_as[match.evicted_as] = self.evicted_as.get(match.evicted_as, 0) + 1


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
