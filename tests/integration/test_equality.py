"""The whole engine under a small KV cache: same answers as stock, and more of them cached."""

import pytest

from benchmarks.prefix_cache.equality import compare

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def test_evictions_and_preemptions_change_no_answer_and_missing_copies_do():
    row = compare("tiny", block_size=32, is_small=True, count=200)
    assert row["identical"] == 200
    assert row["identical_without_copies"] < 200
    assert row["cached_tokens"]["tree"] >= row["cached_tokens"]["stock"]
    assert row["evicted_blocks"] > 0
    assert row["preemptions"]["stock"] > 0 and row["preemptions"]["tree"] > 0
