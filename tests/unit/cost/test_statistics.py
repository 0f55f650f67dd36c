from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from helium.cost import LengthStatistics
from helium.cost.statistics import MAX_REMEMBERED, RELATIVE_ERROR

_lengths = st.lists(st.integers(0, 100_000), min_size=1, max_size=300)


def _observed(lengths: list[int]) -> LengthStatistics:
    statistics = LengthStatistics()
    for length in lengths:
        statistics.observe(length)
    return statistics


@given(_lengths, st.sampled_from([0.0, 0.05, 0.5, 0.9, 0.99, 1.0]))
def test_quantiles_are_within_the_relative_error(lengths: list[int], q: float) -> None:
    found = _observed(lengths).quantile(q)
    rank = max(1, -(-q * len(lengths) // 1))
    exact = sorted(lengths)[int(rank) - 1]
    assert abs(found - exact) <= RELATIVE_ERROR * exact + 1e-6


def test_few_observations_have_their_plain_mean() -> None:
    assert _observed([10, 20, 60]).mean == 30


def test_the_mean_follows_a_drift() -> None:
    statistics = _observed([100] * 500 + [300] * 100)
    assert 295 < statistics.mean <= 300


def test_quantiles_follow_a_drift_after_many_observations() -> None:
    statistics = _observed([100] * (2 * MAX_REMEMBERED) + [300] * (3 * MAX_REMEMBERED))
    assert abs(statistics.quantile(0.3) - 300) < 10


def test_merging_equals_observing_everything() -> None:
    generator = random.Random(0)
    one = [generator.randrange(1_000) for _ in range(18)]
    two = [generator.randrange(1_000) for _ in range(2)]
    merged, whole = _observed(one), _observed(one + two)
    merged.merge(_observed(two))
    assert merged.buckets == whole.buckets
    assert merged.count == whole.count == 20
    assert abs(merged.mean - whole.mean) < 1e-9  # still a plain mean at twenty observations


def test_nothing_observed_has_quantile_zero() -> None:
    assert LengthStatistics().quantile(0.5) == 0.0
