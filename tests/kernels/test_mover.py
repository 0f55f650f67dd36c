"""Transfers bring back the bytes they took away, in order, and wait for nothing on the host."""

from __future__ import annotations

import gc

import pytest
import torch

from helium.errors import KernelError
from tests.kernels.caches import expected_gather, make_cache, poisoned, read_only_copy
from vllm_helium.kernels import mover
from vllm_helium.kernels.mover import BlockMover, empty_host_blocks

NUM_BLOCKS = 12


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


@pytest.mark.parametrize("path", ["staged", "mapped"])
@pytest.mark.parametrize("layout", ["LBNHC", "BHLNC"])
@pytest.mark.parametrize("staged_blocks", [0, 2, 64])
def test_blocks_go_to_host_rows_and_come_back(device, path, layout, staged_blocks):
    cache = make_cache(layout, num_blocks=NUM_BLOCKS, device=device)
    kv = cache.describe()
    moves = BlockMover(kv, path=path, staging_bytes=staged_blocks * kv.staged_block_bytes)
    if device == "cpu" and path == "staged":
        moves._staging = kv.empty_staging(max(1, staged_blocks))  # as on a GPU
    host = empty_host_blocks(kv, 10)
    host.fill_(0xA5)
    blocks, rows = [7, 0, 3, 11, 4], [2, 3, 9, 0, 1]
    before = read_only_copy(cache)

    moves.store(blocks, host, rows).wait_on()
    if device == "cuda":
        torch.cuda.synchronize()
    expected = poisoned(10, kv.staged_block_bytes)
    expected[rows] = expected_gather(cache, blocks, kv.staged_block_bytes)
    assert torch.equal(host, expected)

    cache.storage.zero_()
    loaded = moves.load(host, rows[:4], blocks[:4])
    loaded.wait_on()
    wanted = torch.zeros_like(before)
    for block in blocks[:4]:
        wanted[cache.block_bytes(block)] = before[cache.block_bytes(block)]
    assert torch.equal(cache.storage.cpu(), wanted)
    assert loaded.done()


def test_an_empty_transfer_is_over(device):
    kv = make_cache(device=device).describe()
    transfer = BlockMover(kv).store([], empty_host_blocks(kv, 1), [])
    if device == "cuda":
        torch.cuda.synchronize()
    assert transfer.done()


def test_transfers_on_the_cpu_are_over_at_once():
    kv = make_cache().describe()
    assert BlockMover(kv).store([0], empty_host_blocks(kv, 1), [0]).done()


@pytest.mark.parametrize(
    ("blocks", "rows", "message"),
    [
        ([0, 1], [0], "2 blocks for 1 host rows"),
        ([0, 6], [0, 1], "block_ids are .*0 to 5"),
        ([0, 0], [0, 1], "block_ids are .*distinct"),
        ([0, 1], [0, 4], "rows are .*0 to 3"),
        ([0, 1], [2, 2], "rows are .*distinct"),
    ],
)
def test_bad_transfers_are_refused_before_anything_moves(blocks, rows, message):
    cache = make_cache()
    kv, before = cache.describe(), read_only_copy(cache)
    host = poisoned(4, kv.staged_block_bytes)
    with pytest.raises(KernelError, match=message):
        BlockMover(kv).store(blocks, host, rows)
    with pytest.raises(KernelError, match=message):
        BlockMover(kv).load(host, rows, blocks)
    assert torch.equal(host, poisoned(4, kv.staged_block_bytes))
    assert torch.equal(cache.storage, before)


def test_bad_host_memory_and_paths_are_refused():
    kv = make_cache().describe()
    with pytest.raises(KernelError, match="empty_host_blocks"):
        BlockMover(kv).store([0], poisoned(4, kv.staged_block_bytes - 1), [0])
    with pytest.raises(KernelError, match="contiguous and pinned"):
        BlockMover(kv).store([0], poisoned(8, kv.staged_block_bytes)[::2], [0])
    with pytest.raises(KernelError, match="expected 'staged' or 'mapped'"):
        BlockMover(kv, path="direct")


def test_pinned_memory_is_unpinned_once_and_only_when_the_last_view_goes(monkeypatch):
    calls = []

    class Runtime:
        def cudaHostRegister(self, address, num_bytes, flags):
            calls.append(("pin", address, num_bytes))
            return 0

        def cudaHostUnregister(self, address):
            calls.append(("unpin", address))

    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    kv = make_cache().describe()
    on_gpu = type("OnGpu", (), {"device": torch.device("cuda")})()
    on_gpu.staged_block_bytes = kv.staged_block_bytes
    host = mover.empty_host_blocks(on_gpu, 3)
    address = host.data_ptr()
    pinned = ("pin", address, 3 * kv.staged_block_bytes)
    view = host[1:]
    del host
    gc.collect()
    assert calls == [pinned]
    view.fill_(1)
    del view
    gc.collect()
    assert calls == [pinned, ("unpin", address)]


def test_memory_that_cannot_be_pinned_is_refused(monkeypatch):
    runtime = type("Runtime", (), {"cudaHostRegister": staticmethod(lambda *arguments: 2)})
    monkeypatch.setattr(torch.cuda, "cudart", runtime)
    on_gpu = type("OnGpu", (), {"device": torch.device("cuda"), "staged_block_bytes": 64})()
    with pytest.raises(KernelError, match=r"cannot pin 192 bytes .*code 2"):
        mover.empty_host_blocks(on_gpu, 3)
