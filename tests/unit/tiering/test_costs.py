"""What the host tier believes about costs, and what it counts."""

from __future__ import annotations

import pytest

from vllm_helium.tiering.costs import StepCosts
from vllm_helium.tiering.figures import TierFigures
from vllm_helium.tiering.options import HostTierOptions


def busy(load_s, step_s, num_prefill_tokens):
    """An engine that scheduled some equal steps."""
    costs = StepCosts(load_s)
    for step in range(5):
        costs.step_scheduled(step * step_s, num_prefill_tokens + 8, num_prefill_tokens)
    return costs


def test_nothing_known_means_load_at_once():
    costs = StepCosts(1e-3)
    assert costs.is_load_cheaper(1_000, 1)
    assert not costs.is_wait_cheaper(1_000, 1_000)
    assert costs.saved_s(10, 160) == 0.0


def test_a_slow_link_loses_against_computing():
    fast, slow = busy(1e-5, 0.02, 640), busy(1e-2, 0.02, 640)
    assert fast.prefill_token_s == pytest.approx(0.02 / 640)
    assert fast.is_load_cheaper(10, 160) and not slow.is_load_cheaper(10, 160)
    assert fast.saved_s(10, 160) == pytest.approx(160 * 0.02 / 640 - 10 * 1e-5)


def test_a_request_waits_where_many_would_wait_for_its_load():
    costs = busy(1e-4, 0.02, 0)
    assert costs.step_s == pytest.approx(0.02)
    assert costs.is_wait_cheaper(num_blocks=100, num_running=3)
    assert not costs.is_wait_cheaper(num_blocks=100, num_running=2)
    assert not costs.is_wait_cheaper(num_blocks=100, num_running=3, num_waiting=2.0)


def test_idle_time_is_no_step():
    costs = busy(1e-4, 0.02, 640)
    costs.step_scheduled(60.0, 8, 0)  # after a gap
    assert costs.step_s == pytest.approx(0.02)
    costs.step_scheduled(60.02, 0, 0)  # nothing runs from here on
    costs.step_scheduled(60.1, 8, 0)
    assert costs.step_s == pytest.approx(0.02)


def test_few_prompt_tokens_tell_nothing():
    assert busy(1e-4, 0.02, 63).prefill_token_s is None


def test_figures_add_up_by_direction_and_reason():
    figures = TierFigures(num_waits=2, num_waited_blocks=6)
    counts = {"num_stored": 10, "num_loaded": 6, "num_prefetched": 4}
    counts |= {"num_prefetches_used": 3, "num_prefetches_wasted": 1}
    report = figures.describe(counts, block_bytes=100)
    assert report["moved_blocks"] == {
        "stored": {"evicted": 10},
        "loaded": {"request": 6, "prefetch": 4},
    }
    assert report["moved_bytes"]["loaded"] == {"request": 600, "prefetch": 400}
    assert report["overlap_ratio"] == pytest.approx(1 - 6 / 20)
    nothing = dict.fromkeys(counts, 0)
    assert TierFigures().describe(nothing, 100)["overlap_ratio"] == 1.0
    assert report["prefetch_accuracy"] == 0.75
    assert TierFigures().describe(nothing, 100)["prefetch_accuracy"] is None


def test_options_know_what_a_block_costs():
    options = HostTierOptions.of_sizes(1 << 30, 1 << 28, 1 << 20, link_bytes_per_s=1 << 30)
    assert options.load_s == pytest.approx(1 / 1024)
    assert options.num_staged_blocks == 256
