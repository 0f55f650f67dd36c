"""No request reads wrong KV with a host tier below the device; seeded bugs do not get past that."""

from __future__ import annotations

import itertools

import pytest

from helium.errors import CacheError
from tests.property.shadow_kv import ShadowConfig, ShadowRun
from tests.property.shadow_worker import ShadowError, ShadowWorker
from vllm_helium.integration.host_tier_scheduler import HostTier
from vllm_helium.integration.kv_cache_manager import TrtKVCacheManager

NUM_STEPS = 3_000
NUM_SLOW_STEPS = 100_000
SIZES = ((48, 20), (48, 500), (90, 120), (250, 60))
"""Blocks on the device and slots on the host: a host that evicts itself, and one that does not."""
MODES = list(itertools.product((False, True), ("fcfs", "priority"), (False, True)))


def check_mode(engine_config, is_async, policy, use_v2_runner, num_steps, seed):
    runs = [
        ShadowRun(
            engine_config(is_async, policy),
            ShadowConfig(
                num_blocks=num_blocks,
                num_slots=num_slots,
                is_async=is_async,
                policy=policy,
                use_v2_runner=use_v2_runner,
                num_steps=num_steps // len(SIZES),
                seed=seed + num_blocks + num_slots,
            ),
        ).run()
        for num_blocks, num_slots in SIZES
    ]
    # The run must have exercised what it claims to check.
    assert sum(run.num_steps for run in runs) >= num_steps // len(SIZES) * len(SIZES)
    assert all(run.worker.num_stores > 0 for run in runs)
    for count in ("num_loads", "num_prefetches"):
        assert sum(getattr(run.worker, count) for run in runs) > 0
    assert sum(sum(run.pool.index.stats()["host"]["evicted"].values()) for run in runs) > 0
    return runs


@pytest.mark.parametrize(("is_async", "policy"), itertools.product((False, True), ("fcfs",)))
def test_every_read_hits_its_own_prefix_with_two_tiers(engine_config, is_async, policy):
    check_mode(engine_config, is_async, policy, is_async, NUM_STEPS // 2, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize(("is_async", "policy", "use_v2_runner"), MODES)
def test_every_read_hits_its_own_prefix_with_two_tiers_for_100_000_steps(
    engine_config, is_async, policy, use_v2_runner
):
    num_steps = -(-NUM_SLOW_STEPS // len(MODES))
    runs = check_mode(engine_config, is_async, policy, use_v2_runner, num_steps, seed=100)
    assert sum(run.num_resets for run in runs) > 0


# --- seeded bugs -------------------------------------------------------------------------------


def skip_a_load(patch):
    take = HostTier.take_moves

    def take_all_but_one(self):
        moves = take(self)
        blocks, slots = moves.loads
        moves.loads = (blocks[1:], slots[1:])
        return moves

    patch.setattr(HostTier, "take_moves", take_all_but_one)


def load_from_another_slot(patch):
    load = ShadowWorker._load

    def load_wrongly(self, blocks, slots):
        load(self, blocks, [(slot + 1) % len(self.host) for slot in slots])

    patch.setattr(ShadowWorker, "_load", load_wrongly)


def store_after_the_step(patch):
    step = ShadowWorker.step

    def step_then_store(self, output):
        moves = output.kv_connector_metadata.moves
        stores, moves.stores = moves.stores, ([], [])
        result = step(self, output)
        self._store(*stores)
        return result

    patch.setattr(ShadowWorker, "step", step_then_store)


def leave_matched_slots_unlocked(patch):
    """The request's own room may then cost it what it was about to load."""
    init = TrtKVCacheManager.__init__

    class Index:
        def __init__(self, index):
            self._index = index

        def lock_slots(self, slots):
            pass

        def __getattr__(self, name):
            return getattr(self._index, name)

    def wrapped(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.pool.index = Index(self.pool.index)

    patch.setattr(TrtKVCacheManager, "__init__", wrapped)


def keep_stale_copies_after_a_reset(patch):
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


@pytest.mark.parametrize(
    ("bug", "report"),
    [
        (skip_a_load, "wrong KV"),
        (load_from_another_slot, "wrong KV"),
        (store_after_the_step, "wrong KV"),
        (leave_matched_slots_unlocked, "must be locked|wrong KV"),
        (keep_stale_copies_after_a_reset, "wrong KV"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_a_seeded_bug_of_the_host_tier_is_reported(engine_config, monkeypatch, bug, report):
    def run():
        for seed in range(8):
            ShadowRun(
                engine_config(False, "fcfs"),
                ShadowConfig(
                    num_blocks=48, num_slots=120, is_async=False, num_steps=3000, seed=seed
                ),
            ).run()

    bug(monkeypatch)
    with pytest.raises((ShadowError, CacheError), match=report):
        run()
