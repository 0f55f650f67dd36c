"""The whole engine under a small KV cache: same answers as stock, and more of them cached."""

import pytest

from benchmarks.prefix_cache.equality import broken_claims, compare

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def test_evictions_and_preemptions_change_no_answer_and_missing_copies_do():
    [row] = compare("tiny", 32, 200, control=["small"], sizes=("small",))
    assert broken_claims(row) == []
    assert row["identical_without_copies"] < 200
    assert row["evicted_blocks"]["tree"] > 0 and row["preemptions"]["tree"] > 0
