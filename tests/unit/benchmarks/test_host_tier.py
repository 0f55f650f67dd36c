"""The host tier's shares of an oracle's gain, from figures."""

from __future__ import annotations

import pytest

from benchmarks.tiering import host_tier


def arm(makespan_s, num_prefill_tokens, num_cached_tokens, num_hits=0, used=0, wasted=0):
    link = dict.fromkeys(
        ("num_stored_blocks", "num_loaded_blocks", "num_prefetched_blocks", "delay_s"), 0
    )
    return {
        "makespan_s": makespan_s,
        "num_prefill_tokens": num_prefill_tokens,
        "num_cached_tokens": num_cached_tokens,
        "offline_bound": {"num_hits_two_tiers": num_hits},
        "host_link": link | {"num_prefetches_used": used, "num_prefetches_wasted": wasted},
        "hit_ratio": 0.5,
        "num_preemptions": 0,
        "latency_p50_s": 1.0,
        "latency_p95_s": 2.0,
    }


ARMS = {
    "none": arm(100.0, 10_000, 1_600),
    "tier": arm(98.0, 9_200, 2_400, num_hits=160),
    "tier-ahead": arm(101.0, 9_200, 2_400, num_hits=160, used=9, wasted=1),
    "oracle": arm(96.0, 9_000, 2_500),
    "upstream-none": arm(100.0, 10_000, 1_600),
    "upstream": arm(99.0, 9_500, 2_000),
}


def test_shares_are_gains_over_no_tier():
    assert host_tier.shares(ARMS, "tier") == {
        "offline_cached_ratio": pytest.approx(800 / 960),
        "free_link_prefill_ratio": pytest.approx(0.8),
        "free_link_makespan_ratio": pytest.approx(0.5),
        "prefetch_used_ratio": None,
    }
    ahead = host_tier.shares(ARMS, "tier-ahead")
    assert ahead["free_link_makespan_ratio"] == pytest.approx(-0.25)
    assert ahead["prefetch_used_ratio"] == pytest.approx(0.9)


def test_nothing_to_gain_is_no_share():
    arms = ARMS | {"none": ARMS["oracle"] | {"num_cached_tokens": 2_560}}
    shares = host_tier.shares(arms, "tier")
    assert shares["offline_cached_ratio"] is shares["free_link_prefill_ratio"] is None


def test_a_page_holds_every_case_with_its_shares():
    case = {"case": "trading", "rows": 4, "cut": 8, "num_blocks": 100, "arms": ARMS}
    case["shares"] = {"tier": host_tier.shares(ARMS, "tier")}
    page = host_tier.markdown({"environment": {"vllm": "1", "command": "c"}, "cases": [case]})
    assert "## trading, 4 rows, KV cut to 1/8 (100 blocks)" in page
    assert "offline_cached 83.3 %" in page
