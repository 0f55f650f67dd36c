"""The copies on a worker: what was stored comes back, and nothing outlives the connector."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch

from vllm_helium.integration.host_tier_connector import HeliumHostTier, HostTierMetadata
from vllm_helium.kernels.kv_blocks import KVBlocks
from vllm_helium.tiering.host_memory import HostMemory
from vllm_helium.tiering.moves import StepMoves

NUM_BLOCKS, NUM_SLOTS = 6, 4


def make_cache():
    """Two layers; every block's elements name it."""
    storage = torch.empty(2, NUM_BLOCKS, 2, 16, 8)
    for block in range(NUM_BLOCKS):
        storage[:, block] = block
    views = [storage[0], storage[1]]
    kv = KVBlocks.from_views(views, NUM_BLOCKS, 16, token_addressable=True)
    return storage, kv


@pytest.fixture
def cache():
    storage, kv = make_cache()
    return storage, HostMemory(kv, NUM_SLOTS)


def step(memory, **moves):
    given = StepMoves(**moves)
    memory.begin_step(given)
    memory.load(given)


def test_what_was_stored_comes_back_into_any_blocks(cache):
    storage, memory = cache
    step(memory, stores=([1, 2], [3, 0]))
    storage[:, 1:3] = -1.0
    step(memory, loads=([4, 5, 1], [3, 3, 0]))  # one slot for two requests
    assert [storage[:, block].unique().tolist() for block in (4, 5, 1)] == [[1.0], [1.0], [2.0]]


def test_a_step_may_load_what_it_stores(cache):
    storage, memory = cache
    step(memory, stores=([1], [0]), loads=([2], [0]))
    assert storage[:, 2].unique().tolist() == [1.0]


def test_a_prefetch_is_there_in_the_next_step(cache):
    storage, memory = cache
    step(memory, stores=([1], [0]))
    step(memory, prefetches=([5], [0]))
    step(memory)
    assert storage[:, 5].unique().tolist() == [1.0]


def make_connector(cache):
    storage, kv = cache
    connector = object.__new__(HeliumHostTier)
    connector._memory = HostMemory(kv, NUM_SLOTS)
    connector._connector_metadata = None
    return storage, connector


def test_a_step_begun_before_its_blocks_are_written_is_not_begun_again():
    storage, connector = make_connector(make_cache())
    metadata = HostTierMetadata(StepMoves(stores=([1], [0])))
    connector.handle_preemptions(metadata)
    storage[:, 1] = -1.0
    connector.handle_preemptions(metadata)
    metadata = HostTierMetadata(StepMoves(loads=([2], [0])))
    connector.bind_connector_metadata(metadata)
    connector.start_load_kv(SimpleNamespace())
    assert storage[:, 2].unique().tolist() == [1.0]


def test_a_connector_that_ends_in_mid_transfer_gives_its_memory_back():
    storage, connector = make_connector(make_cache())
    memory = weakref.ref(connector._memory._memory)
    metadata = HostTierMetadata(StepMoves(stores=([1], [0]), prefetches=([3], [0])))
    connector.handle_preemptions(metadata)  # neither transfer is waited for
    connector.shutdown()
    gc.collect()
    assert memory() is None
    connector.bind_connector_metadata(HostTierMetadata(StepMoves(loads=([2], [0]))))
    connector.start_load_kv(SimpleNamespace())
    assert storage[:, 2].unique().tolist() == [2.0], "nothing moves any more"
