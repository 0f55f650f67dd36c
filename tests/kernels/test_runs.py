"""Layouts become the fewest runs, and views that cannot be described are refused."""

from __future__ import annotations

import pytest
import torch

from helium.errors import KernelError
from tests.kernels.caches import make_cache
from vllm_helium.kernels import KVBlocks

LAYERS, HEADS = 3, 2


@pytest.mark.parametrize(
    ("layout", "num_block_runs", "num_token_runs"),
    [
        ("LBNHC", LAYERS, LAYERS),
        ("LBHNC", LAYERS, LAYERS * HEADS),
        ("LHBNC", LAYERS * HEADS, LAYERS * HEADS),
        ("BLHNC", 1, LAYERS * HEADS),
        ("BLNHC", 1, LAYERS),
        ("BHLNC", 1, LAYERS * HEADS),
    ],
)
def test_a_layout_gives_the_fewest_runs(layout, num_block_runs, num_token_runs):
    kv = make_cache(layout, num_layers=LAYERS, num_heads=HEADS).describe()
    assert len(kv.blocks.rows) == num_block_runs
    assert len(kv.tokens.rows) == num_token_runs
    assert kv.blocks.alignment == kv.tokens.alignment == 16


@pytest.mark.parametrize("layout", ["LBNHC", "BLHNC"])
def test_one_block_is_described_like_many(layout):
    one = make_cache(layout, num_blocks=1).describe()
    many = make_cache(layout, num_blocks=5).describe()
    assert len(one.blocks.rows) == len(many.blocks.rows)
    assert one.staged_block_bytes == many.staged_block_bytes


def test_kernel_blocks_join_where_they_are_neighbours():
    whole = make_cache("LBNHC").describe()
    split = make_cache("LBNHC", kernel_blocks=4).describe()
    assert torch.equal(split.blocks.rows, whole.blocks.rows)
    assert torch.equal(split.tokens.rows, whole.tokens.rows)


def test_tokens_with_gaps_between_them_get_a_run_each():
    cache = make_cache("LBNHC", num_layers=1)
    keys_only = [view[..., :8] for view in cache.views]
    kv = KVBlocks.from_views(keys_only, 6, 16, token_addressable=True)
    assert len(kv.tokens.rows) == 16 * 2
    assert kv.staged_block_bytes == cache.describe().staged_block_bytes // 2


@pytest.mark.parametrize(
    ("head_size", "dtype", "alignment"),
    [
        (8, torch.bfloat16, 16),
        (6, torch.bfloat16, 8),
        (5, torch.bfloat16, 4),
        (5, torch.float8_e4m3fn, 2),
    ],
)
def test_the_access_width_follows_from_sizes(head_size, dtype, alignment):
    kv = make_cache(head_size=head_size, dtype=dtype, num_heads=1, block_size=1).describe()
    assert kv.blocks.alignment == kv.tokens.alignment == alignment


def test_an_odd_content_gives_single_byte_accesses():
    storage = torch.zeros(2 * 3 * 5 * 7, dtype=torch.uint8)
    views = [storage.view(2, 3, 5, 7)]
    assert KVBlocks.from_views(views, 2, 5, token_addressable=True).blocks.alignment == 1


def test_caches_without_a_token_axis_move_whole_blocks():
    state = torch.zeros(4, 3, 10)
    kv = KVBlocks.from_views([state], 4, 16, token_addressable=False)
    assert kv.tokens is None
    assert kv.staged_block_bytes == 3 * 10 * 4


def describe(views, num_blocks=6, block_size=16, token_addressable=True):
    return KVBlocks.from_views(views, num_blocks, block_size, token_addressable=token_addressable)


@pytest.mark.parametrize(
    ("views", "options", "message"),
    [
        ([], {}, "no KV cache view"),
        ([torch.zeros(6, 1, 16, 4), torch.zeros(6, 1, 16, 4)], {}, "2 allocations"),
        ([torch.zeros(6, 1, 16, 4)], {"num_blocks": 4}, "num_blocks = 4"),
        ([torch.zeros(6, 1, 16, 4)], {"num_blocks": 0}, "num_blocks = 0"),
        ([torch.zeros(6, 1, 16, 4)], {"block_size": 32}, "expected .*32 / k"),
        ([torch.zeros(6, 64)], {}, "token_addressable=False"),
        ([torch.zeros(6, 1, 16, 1).expand(6, 1, 16, 4)], {}, "expanded"),
        ([torch.zeros(6, 64, device="meta")], {"token_addressable": False}, "meta"),
    ],
)
def test_views_that_do_not_fit_are_refused(views, options, message):
    with pytest.raises(KernelError, match=message):
        describe(views, **options)


def test_views_that_share_some_bytes_are_refused():
    storage = torch.zeros(6, 1, 32, 4)
    with pytest.raises(KernelError, match="overlap"):
        describe([storage[:, :, :16], storage[:, :, 8:24]])


def test_cache_groups_with_other_pages_in_the_same_bytes_are_refused():
    storage = torch.zeros(6 * 64)
    large_page = storage.view(6, 1, 16, 4)
    small_page_layer = storage[192:].view(6, 1, 8, 4)
    with pytest.raises(KernelError, match="overlap"):
        describe([large_page, small_page_layer], token_addressable=False)


def test_blocks_closer_than_their_bytes_are_refused():
    with pytest.raises(KernelError, match="belong to two blocks"):
        describe([torch.zeros(6 * 64).as_strided((6, 1, 16, 4), (32, 64, 4, 1))])
