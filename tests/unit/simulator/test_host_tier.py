"""A host tier in the simulator on a static plan in a cache that is far too small."""

from __future__ import annotations

from benchmarks.simulated_run import Setting, run_system
from benchmarks.tiering.host_tier import arm_system


def test_nine_of_ten_prefetched_blocks_are_used_on_a_static_plan():
    setting = Setting(
        "trading-4b", rows=2, is_distinct=True, scale=0.5, num_blocks=900, has_trace=True
    )
    figures = run_system(setting, arm_system("tier-ahead", host_gib=8.0))["figures"]
    link = figures["host_link"]
    used, wasted = link["num_prefetches_used"], link["num_prefetches_wasted"]
    assert used >= 20
    assert used >= 0.9 * (used + wasted)
    # What comes back is most of what a cache of both tiers' size could have had.
    bound = 16 * figures["offline_bound"]["num_hits_two_tiers"]
    assert 0.85 * bound <= figures["num_cached_tokens"] <= bound * 1.05
