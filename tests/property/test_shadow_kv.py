"""No request ever reads KV that is not its own prefix's; and seeded bugs do not get past that."""

from __future__ import annotations

import itertools

import pytest

from helium.errors import CacheError
from tests.property.shadow_kv import ShadowConfig, ShadowRun
from tests.property.shadow_worker import ShadowError
from vllm_helium.integration import kv_cache_manager, kv_cache_manager_path
from vllm_helium.integration.kv_cache_coordinator import TrtBlockPool
from vllm_helium.integration.kv_cache_manager import TrtKVCacheManager
from vllm_helium.prefix_cache.plan_uses import PlanUses

NUM_STEPS = 100_000
NUM_SLOW_STEPS = 1_000_000
POOLS = (48, 90, 250)
MODES = list(itertools.product((False, True), ("fcfs", "priority"), (False, True)))


def check_mode(engine_config, is_async, policy, use_v2_runner, num_steps, seed):
    runs = [
        ShadowRun(
            engine_config(is_async, policy),
            ShadowConfig(
                num_blocks=num_blocks,
                is_async=is_async,
                policy=policy,
                use_v2_runner=use_v2_runner,
                num_steps=num_steps // len(POOLS),
                seed=seed + num_blocks,
            ),
        ).run()
        for num_blocks in POOLS
    ]
    # The run must have exercised what it claims to check.
    assert sum(run.num_steps for run in runs) >= num_steps // len(POOLS) * len(POOLS)
    assert all(run.worker.num_copies > 0 for run in runs)
    assert all(sum(run.pool.index.stats()["evicted"].values()) > 0 for run in runs)
    assert all(run.num_cached_tokens > 0 and run.num_aborts > 0 for run in runs)
    assert all(run.scheduler.holds.num_held > 0 for run in runs)
    for count in ("num_preempted", "num_leases", "num_resets", "num_runs", "num_short_cuts"):
        assert sum(getattr(run, count) for run in runs) > 0


@pytest.mark.parametrize(("is_async", "policy", "use_v2_runner"), MODES)
def test_every_read_hits_its_own_prefix(engine_config, is_async, policy, use_v2_runner):
    num_steps = -(-NUM_STEPS // len(MODES))
    check_mode(engine_config, is_async, policy, use_v2_runner, num_steps, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 6000, 1000))
@pytest.mark.parametrize(("is_async", "policy", "use_v2_runner"), MODES)
def test_every_read_hits_its_own_prefix_for_a_million_steps(
    engine_config, is_async, policy, use_v2_runner, seed
):
    num_steps = -(-NUM_SLOW_STEPS // len(MODES) // 5)
    check_mode(engine_config, is_async, policy, use_v2_runner, num_steps, seed)


@pytest.mark.parametrize("block_size", [1, 17, 32])
@pytest.mark.parametrize("min_partial_tokens", [0, 1, 8])
def test_every_read_hits_its_own_prefix_at_other_sizes(
    engine_config, block_size, min_partial_tokens
):
    run = ShadowRun(
        engine_config(True, "fcfs"),
        ShadowConfig(
            num_blocks=1 + 1600 // block_size,
            block_size=block_size,
            min_partial_tokens=min_partial_tokens,
            is_async=True,
            num_steps=600,
            seed=7,
        ),
    ).run()
    copies_expected = min_partial_tokens > 0 and block_size > 1
    assert (run.worker.num_copies > 0) == copies_expected


# --- seeded bugs -------------------------------------------------------------------------------


def skip_a_copy(patch):
    take = TrtKVCacheManager.take_kv_cache_block_copies

    def take_all_but_one(self):
        copies, retained = take(self)
        return copies[1:], retained

    patch.setattr(TrtKVCacheManager, "take_kv_cache_block_copies", take_all_but_one)


def ignore_the_salt(patch):
    patch.setattr(kv_cache_manager_path, "namespace_of", lambda request: b"")


def evict_a_held_block(patch):
    def touch(self, blocks):
        for block in blocks:
            block.ref_cnt += 1

    def free_blocks(self, ordered_blocks):
        freed = []
        for block in ordered_blocks:
            block.ref_cnt -= 1
            if block.ref_cnt == 0 and self.index.place(block.block_id) == "held":
                freed.append(block.block_id)
        self.index.release(freed)

    def get_new_blocks(self, num_blocks):
        blocks = [self.blocks[block_id] for block_id in self.index.evict(num_blocks)]
        for block in blocks:
            block.ref_cnt += 1
        return blocks

    for method in (touch, free_blocks, get_new_blocks):
        patch.setattr(TrtBlockPool, method.__name__, method)


def forget_a_pending_use(patch):
    set_uses = PlanUses._update

    def update_all_but_static(self, node, row):
        if not self._is_static[node]:
            set_uses(self, node, row)

    patch.setattr(PlanUses, "_update", update_all_but_static)


def copy_what_the_same_step_writes(patch):
    cache_full_blocks = TrtBlockPool.cache_full_blocks

    def cache_as_if_written(self, *args, **kwargs):
        cache_full_blocks(self, *args, **kwargs)
        self.index.advance(0.0)

    patch.setattr(TrtBlockPool, "cache_full_blocks", cache_as_if_written)


def keep_what_a_preempted_step_never_wrote(patch):
    patch.setattr(TrtBlockPool, "drop_unwritten", lambda *args: None)


def survive_a_reset(patch):
    class Index:
        def __init__(self, index):
            self._index = index

        def __getattr__(self, name):
            return (lambda: None) if name == "reset" else getattr(self._index, name)

    init = TrtKVCacheManager.__init__

    def wrapped(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.pool.index = Index(self.pool.index)

    patch.setattr(TrtKVCacheManager, "__init__", wrapped)


def forget_that_a_block_fills_up(patch):
    needs_no_block = kv_cache_manager.needs_no_block

    def while_there_are_slots(group, request, num_new_tokens, args, kwargs):
        known = group.num_cached_block.get(request.request_id)
        try:
            if known is not None:
                group.num_cached_block[request.request_id] = 1 << 20
            return needs_no_block(group, request, num_new_tokens, args, kwargs)
        finally:
            if known is not None:
                group.num_cached_block[request.request_id] = known

    patch.setattr(kv_cache_manager, "needs_no_block", while_there_are_slots)


@pytest.mark.parametrize(
    ("bug", "policy", "report"),
    [
        (skip_a_copy, "fcfs", "wrong KV"),
        (ignore_the_salt, "fcfs", "wrong KV"),
        (evict_a_held_block, "fcfs", "wrong KV|references"),
        (forget_a_pending_use, "fcfs", "pending are"),
        (copy_what_the_same_step_writes, "fcfs", "wrong KV"),
        (keep_what_a_preempted_step_never_wrote, "priority", "wrong KV"),
        (survive_a_reset, "fcfs", "wrong KV"),
        (forget_that_a_block_fills_up, "fcfs", "short cut"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_a_seeded_bug_is_reported(engine_config, monkeypatch, bug, policy, report):
    def run():
        # Most bugs show within a hundred steps; the rarest needs some luck with preemptions.
        for seed in range(16):
            ShadowRun(
                engine_config(False, policy),
                ShadowConfig(
                    num_blocks=40, is_async=False, policy=policy, num_steps=3000, seed=seed
                ),
            ).run()

    bug(monkeypatch)
    with pytest.raises((ShadowError, CacheError), match=report):
        run()
