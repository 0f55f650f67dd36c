"""Online statistics of a length: a recency-weighted mean and quantiles, mergeable and JSON-able."""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
from msgspec import Meta

EWMA_WEIGHT = 0.05
"""Weight of one new observation once warmed up: the mean remembers about the last forty calls."""

RELATIVE_ERROR = 0.02
"""Quantiles are off by at most this share of their value."""

MAX_REMEMBERED = 4_096
"""Observations after which the histogram is halved, so that quantiles follow a drift."""

_LOG_BASE = math.log((1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR))


class LengthStatistics(msgspec.Struct, forbid_unknown_fields=True):
    """Lengths seen so far, in tokens.

    The mean is the plain mean of the first observations and turns into an exponentially weighted
    one. Quantiles come from a histogram of geometrically growing buckets, so that a few dozen
    counters answer any quantile to within ``RELATIVE_ERROR``.

    Attributes:
        count: Observations ever.
        mean: Recency-weighted mean.
        buckets: Bucket number -> weight; bucket ``b`` holds lengths in ``(g**(b-1), g**b]``; bucket
            -1 holds zeros.
    """

    count: Annotated[int, Meta(ge=0)] = 0
    mean: Annotated[float, Meta(ge=0)] = 0.0
    buckets: dict[int, Annotated[float, Meta(ge=0)]] = msgspec.field(default_factory=dict)

    def observe(self, length: float) -> None:
        """Adds one observation; constant time."""
        self.count += 1
        self.mean += (length - self.mean) * max(EWMA_WEIGHT, 1 / self.count)
        bucket = _bucket(length)
        self.buckets[bucket] = self.buckets.get(bucket, 0.0) + 1.0
        if self.count % MAX_REMEMBERED == 0:
            halved = {b: weight / 2 for b, weight in self.buckets.items()}
            self.buckets = {b: weight for b, weight in halved.items() if weight >= 0.5}

    def quantile(self, q: float) -> float:
        """Returns the length that a share ``q`` of the observations does not exceed; 0 if none."""
        total = sum(self.buckets.values())
        if not total:
            return 0.0
        reached = 0.0
        for bucket in sorted(self.buckets):
            reached += self.buckets[bucket]
            if reached >= q * total:
                break
        return _length(bucket)

    def merge(self, other: LengthStatistics) -> None:
        """Adds another's observations; its mean counts by its number of observations."""
        total = self.count + other.count
        if not total:
            return
        self.mean += (other.mean - self.mean) * other.count / total
        self.count = total
        for bucket, weight in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0.0) + weight


def _bucket(length: float) -> int:
    return -1 if length < 1 else math.ceil(math.log(length) / _LOG_BASE)


def _length(bucket: int) -> float:
    if bucket < 0:
        return 0.0
    base = math.exp(_LOG_BASE)
    return 2 * base**bucket / (base + 1)  # the point of the bucket with equal error to both ends
