"""Every backend moves exactly the bytes that a byte-by-byte oracle names, and no others."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.caches import (
    DTYPES,
    LAYOUTS,
    POISON,
    expected_gather,
    make_cache,
    poisoned,
    read_only_copy,
)

MAX_PROGRAMS = 5

GEOMETRIES = {
    "plain": {},
    "one_layer_one_head": {"num_layers": 1, "num_heads": 1},
    "odd_head": {"dtype": torch.float8_e4m3fn, "head_size": 5, "num_heads": 3},
    "block_of_1": {"block_size": 1},
    "block_of_17": {"block_size": 17},
    "padded": {"padding": 48},
    "padded_oddly": {"padding": 7, "dtype": torch.float8_e5m2},
}


def staged_move(operation, kv, ids, staging, alignment=None):
    operation(
        kv.storage,
        kv.blocks.rows,
        torch.tensor(ids, dtype=torch.int64, device=kv.device),
        staging,
        kv.num_blocks,
        alignment or kv.blocks.alignment,
        MAX_PROGRAMS,
    )


def check_gather(backend, cache, ids, **options):
    backend, device = backend
    kv = cache.describe(**options)
    before = read_only_copy(cache)
    staging = poisoned(len(ids), kv.staged_block_bytes, device=device)
    staged_move(backend.gather_blocks, kv, ids, staging)
    assert torch.equal(staging.cpu(), expected_gather(cache, ids, kv.staged_block_bytes))
    assert torch.equal(cache.storage.cpu(), before)


def check_scatter(backend, cache, ids, **options):
    backend, device = backend
    kv = cache.describe(**options)
    staging = expected_gather(cache, ids, kv.staged_block_bytes).to(device)
    expected = torch.full_like(read_only_copy(cache), POISON)
    for block in ids:
        if 0 <= block < cache.num_blocks:
            offsets = cache.block_bytes(block)
            expected[offsets] = read_only_copy(cache)[offsets]
    cache.storage.fill_(POISON)
    staged_move(backend.scatter_blocks, kv, ids, staging)
    assert torch.equal(cache.storage.cpu(), expected)


def check_copy(backend, cache, copies, **options):
    backend, device = backend
    kv = cache.describe(**options)
    expected = read_only_copy(cache)
    for source, destination, num_tokens in copies:
        if max(source, destination) < cache.num_blocks and min(source, destination) >= 0:
            # Offsets of both blocks ascend alike, whichever tokens they belong to.
            read = cache.block_bytes(source, num_tokens)
            expected[cache.block_bytes(destination, num_tokens)] = expected[read]
    backend.copy_block_prefix(
        kv.storage,
        kv.tokens.rows,
        torch.tensor(copies, dtype=torch.int64, device=device),
        kv.num_blocks,
        kv.tokens.alignment,
        MAX_PROGRAMS,
    )
    assert torch.equal(cache.storage.cpu(), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_layout_moves_exactly_its_blocks(backend, layout, geometry):
    def make():
        return make_cache(layout, device=backend[1], **GEOMETRIES[geometry])

    size = make().block_size
    check_gather(backend, make(), [4, 0, 5, 4])
    check_scatter(backend, make(), [5, 0, 3])
    check_copy(backend, make(), [(0, 1, 1), (5, 3, size), (0, 4, size // 2), (5, 2, 0)])


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name.startswith("LB")])
@pytest.mark.parametrize("kernel_blocks", [2, 4])
def test_kernel_blocks_of_a_block_move_together(backend, layout, kernel_blocks):
    def make():
        return make_cache(layout, kernel_blocks=kernel_blocks, device=backend[1])

    check_gather(backend, make(), [3, 1])
    check_scatter(backend, make(), [3, 1])
    check_copy(backend, make(), [(0, 1, 3), (0, 2, 4), (5, 3, 5), (5, 4, 16)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_element_types_play_no_part(backend, dtype):
    def make():
        return make_cache(dtype=dtype, device=backend[1])

    check_gather(backend, make(), [2])
    check_scatter(backend, make(), [2])
    check_copy(backend, make(), [(0, 2, 7)])


@pytest.mark.parametrize("num_tokens", [1, 15, 16, 17, 31, 32])
@pytest.mark.parametrize("layout", ["LBNHC", "BLHNC"])
def test_a_prefix_copy_keeps_what_follows(backend, layout, num_tokens):
    cache = make_cache(layout, block_size=32, device=backend[1])
    check_copy(backend, cache, [(3, 1, num_tokens)])


def test_empty_batches_launch_nothing(backend):
    check_gather(backend, make_cache(device=backend[1]), [])
    check_scatter(backend, make_cache(device=backend[1]), [])


@pytest.mark.parametrize("num_ids", [1, 17])
def test_batches_of_any_length_move(backend, num_ids):
    ids = [(7 * row) % 17 for row in range(num_ids)]
    check_gather(backend, make_cache("BLNHC", num_blocks=17, device=backend[1]), ids)
    check_scatter(backend, make_cache("BLNHC", num_blocks=17, device=backend[1]), ids)


@pytest.mark.parametrize("num_copies", [1, 17])
def test_batches_of_copies_of_any_length_move(backend, num_copies):
    # A token more or less from one to the next: block - 1, block, 1 and all between.
    copies = [(row, 17 + row, (15 + row) % 17) for row in range(num_copies)]
    check_copy(backend, make_cache("BLHNC", num_blocks=34, device=backend[1]), copies)


@pytest.mark.slow
def test_batches_of_4096_blocks_move(backend):
    def make():
        return make_cache(
            "BLNHC", num_layers=1, num_heads=1, block_size=2, num_blocks=4099, device=backend[1]
        )

    ids = [(1009 * row) % 4099 for row in range(4096)]
    check_gather(backend, make(), ids)
    check_scatter(backend, make(), ids)
    copies = [(row, 2049 + row, 1 + row % 2) for row in range(2049)]
    check_copy(backend, make(), copies)


@pytest.mark.parametrize("max_run_bytes", [48, 1000])
def test_cut_runs_move_the_same_bytes(backend, max_run_bytes):
    for layout in ("LBNHC", "BHLNC"):
        check_gather(
            backend, make_cache(layout, device=backend[1]), [1, 4], max_run_bytes=max_run_bytes
        )
        check_copy(
            backend,
            make_cache(layout, device=backend[1]),
            [(1, 4, 11)],
            max_run_bytes=max_run_bytes,
        )


def test_runs_longer_than_a_programs_iteration_move(backend):
    def make():
        return make_cache("BLNHC", head_size=128, block_size=16, device=backend[1])

    for max_run_bytes in (None, 20_000):
        check_gather(backend, make(), [1, 4], max_run_bytes=max_run_bytes)
        check_copy(backend, make(), [(1, 4, 13)], max_run_bytes=max_run_bytes)


def test_ids_outside_the_cache_move_nothing(backend):
    check_gather(backend, make_cache(device=backend[1]), [-1, 2, 6, 1 << 40])
    check_scatter(backend, make_cache(device=backend[1]), [-1, 2, 6, -(1 << 40)])
    check_copy(backend, make_cache(device=backend[1]), [(0, -1, 3), (6, 1, 3), (2, 3, 3)])


@pytest.mark.parametrize("alignment", [1, 2, 4, 8, 16])
def test_every_access_width_moves_the_same_bytes(backend, alignment):
    moves, device = backend
    cache = make_cache(device=device)
    kv = cache.describe()
    staging = poisoned(2, kv.staged_block_bytes, device=device)
    staged_move(moves.gather_blocks, kv, [5, 1], staging, alignment)
    assert torch.equal(staging.cpu(), expected_gather(cache, [5, 1], kv.staged_block_bytes))


def test_staging_rows_may_be_apart(backend):
    moves, device = backend
    cache = make_cache(device=device)
    kv = cache.describe()
    wide = poisoned(3, kv.staged_block_bytes + 32, device=device)
    staged_move(moves.gather_blocks, kv, [5, 1, 0], wide[:, 16:-16])
    expected = torch.full_like(wide.cpu(), POISON)
    expected[:, 16:-16] = expected_gather(cache, [5, 1, 0], kv.staged_block_bytes)
    assert torch.equal(wide.cpu(), expected)


def test_layers_that_share_a_cache_move_once(backend):
    cache = make_cache(device=backend[1])
    cache.views.append(cache.views[0])
    assert cache.describe().staged_block_bytes == make_cache().describe().staged_block_bytes
    check_gather(backend, cache, [3])
