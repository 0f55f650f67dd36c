"""What a simulation measures."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(slots=True)
class CallRecord:
    """One call as its client saw it; times are virtual seconds since the start.

    Attributes:
        num_cached_tokens: Prompt tokens found in the prefix cache at its first admission.
    """

    request_id: str
    arrival_s: float
    num_prompt_tokens: int
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    num_preemptions: int = 0
    first_token_s: float = math.nan
    finish_s: float = math.nan

    @property
    def latency_s(self) -> float:
        """From arrival to the last token."""
        return self.finish_s - self.arrival_s


@dataclass(slots=True)
class EngineFigures:
    """Totals of one engine or of several.

    Attributes:
        num_prompt_tokens: Of all admitted calls; the two below it add up to it.
        num_cached_tokens: Prompt tokens taken from the prefix cache at first admission.
        num_missed_tokens: Prompt tokens that were not.
        num_prefill_tokens: Tokens computed by prefill, those computed anew after a preemption
            included.
        num_decode_tokens: Tokens computed by decoding.
        num_evictions: Cached blocks that were given up to make room.
        busy_s: Seconds the device computed.
    """

    num_calls: int = 0
    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0
    num_output_tokens: int = 0
    num_evictions: int = 0
    num_preemptions: int = 0
    busy_s: float = 0.0

    @property
    def num_missed_tokens(self) -> int:
        return self.num_prompt_tokens - self.num_cached_tokens

    @property
    def hit_ratio(self) -> float:
        """Share of the prompt tokens found in the prefix cache."""
        return self.num_cached_tokens / self.num_prompt_tokens if self.num_prompt_tokens else 0.0

    def add(self, other: EngineFigures) -> None:
        """Adds another engine's."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)

    def since(self, earlier: EngineFigures) -> EngineFigures:
        """Returns what was added after an earlier state."""
        before = asdict(earlier)
        return EngineFigures(**{name: value - before[name] for name, value in asdict(self).items()})

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return {
            **asdict(self),
            "num_missed_tokens": self.num_missed_tokens,
            "hit_ratio": self.hit_ratio,
        }


def quantile(values: Iterable[float], q: float) -> float:
    """Returns the smallest value that a share ``q`` of the values does not exceed; nan if none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)] if ordered else math.nan
