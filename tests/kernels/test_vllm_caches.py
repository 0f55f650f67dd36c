"""Caches as vLLM itself allocates them, in every layout it knows."""

from __future__ import annotations

import pytest
import torch

from helium.errors import KernelError
from tests.kernels.caches import LAYOUTS, Cache, expected_gather, poisoned
from vllm_helium import kernels

interface = pytest.importorskip("vllm.v1.kv_cache_interface", reason="vLLM is not installed")
vllm_caches = pytest.importorskip("vllm_helium.kernels.vllm_caches")

NUM_BLOCKS, BLOCK_SIZE, NUM_LAYERS = 5, 32, 3
LAYERS = [f"model.layers.{layer}.attn" for layer in range(NUM_LAYERS)]


def allocate(layout_name, dtype=torch.bfloat16, kernel_block_size=None, **options):
    from vllm.v1.worker.utils import allocate_kv_cache

    layout = interface.KVCacheLayout[layout_name]
    spec = interface.FullAttentionSpec(
        block_size=BLOCK_SIZE, num_kv_heads=2, head_size=8, dtype=dtype, **options
    )
    strides = interface.compute_layout_strides(spec, NUM_BLOCKS, NUM_LAYERS, layout)
    tensor = interface.KVCacheTensor(
        size=spec.page_size_bytes * NUM_BLOCKS * NUM_LAYERS,
        layers=LAYERS,
        layer_stride=strides[0],
        block_stride=strides[1],
    )
    config = interface.KVCacheConfig(
        num_blocks=NUM_BLOCKS,
        kv_cache_tensors=[tensor],
        kv_cache_groups=[interface.KVCacheGroupSpec(LAYERS, spec)],
    )
    sizes = None if kernel_block_size is None else [kernel_block_size]
    caches = allocate_kv_cache(config, torch.device("cpu"), layout, sizes)
    storage = torch.empty(0, dtype=torch.uint8).set_(caches[LAYERS[0]].untyped_storage())
    storage.copy_(torch.randint(0, 256, storage.shape, dtype=torch.uint8))
    return Cache(storage, list(caches.values()), NUM_BLOCKS, BLOCK_SIZE), caches, config


def check_whole_blocks(cache, kv):
    ids = [4, 0, 2]
    staging = poisoned(len(ids), kv.staged_block_bytes)
    kernels.gather_blocks(kv, ids, staging)
    assert torch.equal(staging, expected_gather(cache, ids, kv.staged_block_bytes))
    before = cache.storage.clone()
    cache.storage.zero_()
    kernels.scatter_blocks(kv, ids, staging)
    untouched = torch.ones_like(before, dtype=torch.bool)
    for block in ids:
        offsets = cache.block_bytes(block)
        assert torch.equal(cache.storage[offsets], before[offsets])
        untouched[offsets] = False
    assert not cache.storage[untouched].any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_vllm_is_described(layout):
    assert sorted(LAYOUTS) == sorted(member.name for member in interface.KVCacheLayout)
    cache, caches, config = allocate(layout)
    check_whole_blocks(cache, vllm_caches.describe_vllm_caches(caches, config))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn], ids=str)
def test_other_element_types_are_described(dtype):
    cache, caches, config = allocate("LBNHC", dtype)
    check_whole_blocks(cache, vllm_caches.describe_vllm_caches(caches, config))


def test_kernel_blocks_and_padded_pages_are_described():
    cache, caches, config = allocate("LBHNC", kernel_block_size=16)
    check_whole_blocks(cache, vllm_caches.describe_vllm_caches(caches, config))
    cache, caches, config = allocate("LBNHC", page_size_padded=2 * BLOCK_SIZE * 2 * 16 + 64)
    kv = vllm_caches.describe_vllm_caches(caches, config)
    assert kv.staged_block_bytes == NUM_LAYERS * 2 * BLOCK_SIZE * 2 * 16
    check_whole_blocks(cache, kv)


def test_blocks_on_the_cpu_move_whole_only():
    _, caches, config = allocate("LBHNC")
    assert vllm_caches.describe_vllm_caches(caches, config).tokens is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"kv_quant_mode": "FP8_PER_TENSOR"}, True),
        ({"kv_quant_mode": "NVFP4"}, False),
        ({"state_content_bytes": 40}, False),
        ({"tokens_per_state": 2}, False),
    ],
)
def test_tokens_are_told_apart_only_in_plain_formats(options, expected):
    if mode := options.get("kv_quant_mode"):
        options = {"kv_quant_mode": interface.KVQuantMode[mode]}
    spec = interface.FullAttentionSpec(
        block_size=BLOCK_SIZE, num_kv_heads=2, head_size=8, dtype=torch.bfloat16, **options
    )
    group = interface.KVCacheGroupSpec(LAYERS, spec)
    assert vllm_caches._tokens_are_apart(group, torch.device("cuda")) is expected


def test_a_missing_layer_is_refused():
    _, caches, config = allocate("LBNHC")
    del caches[LAYERS[1]]
    with pytest.raises(KernelError, match=r"model.layers.1.attn.*NoneType"):
        vllm_caches.describe_vllm_caches(caches, config)
