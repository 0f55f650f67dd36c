"""What only a GPU shows: pinned host memory, graphs, streams, and no waiting."""

from __future__ import annotations

import pytest
import torch

from helium.errors import KernelError
from tests.kernels.caches import expected_gather, make_cache, poisoned, read_only_copy
from vllm_helium import kernels
from vllm_helium.kernels import dispatch
from vllm_helium.kernels.mover import BlockMover, empty_host_blocks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
STREAM_WORK_CYCLES = 500_000_000


@pytest.fixture(params=["triton", "cuda"])
def served_by(request):
    """Makes one backend serve the operators."""
    try:
        dispatch.load_backend(request.param)
    except KernelError as error:
        pytest.skip(str(error))
    with dispatch.use_backend("cuda", request.param):
        yield request.param


def test_gather_writes_pinned_host_memory_and_scatter_reads_it(served_by):
    cache = make_cache(device="cuda")
    kv, ids = cache.describe(), [4, 0, 3]
    host = empty_host_blocks(kv, 3).fill_(0xA5)
    kernels.gather_blocks(kv, ids, host)
    torch.cuda.synchronize()
    assert torch.equal(host, expected_gather(cache, ids, kv.staged_block_bytes))
    before = read_only_copy(cache)
    for block in ids:
        cache.storage[cache.block_bytes(block).cuda()] = 0
    kernels.scatter_blocks(kv, ids, host)
    assert torch.equal(cache.storage.cpu(), before)


def test_unpinned_host_memory_is_refused(served_by):
    kv = make_cache(device="cuda").describe()
    with pytest.raises(KernelError, match="pinned host memory"):
        kernels.gather_blocks(kv, [0], kv.empty_staging(1, torch.device("cpu")))


def test_launches_are_captured_and_replayed_with_other_ids(served_by):
    cache = make_cache(device="cuda")
    kv = cache.describe()
    ids = torch.tensor([0, 1, -1], device="cuda")
    copies = torch.tensor([[0, 5, 3], [-1, -1, 0]], device="cuda")
    staging = poisoned(3, kv.staged_block_bytes, device="cuda")

    def launch():
        kernels.copy_block_prefix(kv, copies)
        kernels.gather_blocks(kv, ids, staging)

    pristine = cache.storage.clone()
    launch()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    cache.storage.copy_(pristine)
    staging.fill_(0xA5)
    ids.copy_(torch.tensor([-1, 4, 2]))
    copies.copy_(torch.tensor([[1, 2, 16], [3, 4, 5]]))
    graph.replay()
    torch.cuda.synchronize()

    expected = pristine.cpu()
    for source, destination, num_tokens in [(1, 2, 16), (3, 4, 5)]:
        read = cache.block_bytes(source, num_tokens)
        expected[cache.block_bytes(destination, num_tokens)] = expected[read]
    assert torch.equal(cache.storage.cpu(), expected)
    assert torch.equal(staging.cpu(), expected_gather(cache, [-1, 4, 2], kv.staged_block_bytes))


@pytest.mark.parametrize("path", ["staged", "mapped"])
def test_a_store_waits_for_the_callers_stream_and_not_for_the_host(served_by, path):
    cache = make_cache(device="cuda")
    kv = cache.describe()
    moves, host = BlockMover(kv, path=path), empty_host_blocks(kv, 1)
    moves.store([0], host, [0])  # compiles
    torch.cuda.synchronize()

    torch.cuda._sleep(STREAM_WORK_CYCLES)
    cache.storage.fill_(0x3C)
    stored = moves.store([2], host, [0])
    assert not stored.done(), "the host did not wait"
    torch.cuda.synchronize()
    assert stored.done()
    assert (host == 0x3C).all(), "the store read what the stream wrote before it"


@pytest.mark.parametrize("path", ["staged", "mapped"])
def test_work_behind_a_load_reads_what_it_brought(served_by, path):
    cache = make_cache(device="cuda")
    kv = cache.describe()
    moves, host = BlockMover(kv, path=path), empty_host_blocks(kv, 2).fill_(0x3C)
    moves.load(host, [0], [0])  # compiles
    torch.cuda.synchronize()

    torch.cuda._sleep(STREAM_WORK_CYCLES)
    moves.load(host, [1], [2]).wait_on()
    seen = cache.storage.clone()
    torch.cuda.synchronize()
    assert (seen.cpu()[cache.block_bytes(2)] == 0x3C).all()


def test_the_dispatcher_prefers_a_kernel_to_plain_torch():
    assert dispatch.choose_backend("cuda").name in ("cuda", "triton"), kernels.describe("cuda")
