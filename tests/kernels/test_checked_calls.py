"""The checked calls move what the backends move, and refuse with a reason what does not fit."""

from __future__ import annotations

import pytest
import torch

from helium.errors import KernelError
from tests.kernels.caches import expected_gather, make_cache, poisoned, read_only_copy
from vllm_helium import kernels
from vllm_helium.kernels import dispatch, reference

SIZE = 16


@pytest.fixture
def cache():
    return make_cache()


@pytest.mark.parametrize("as_tensor", [False, True])
def test_gather_then_scatter_restores_blocks(cache, as_tensor):
    kv, ids = cache.describe(), [4, 0, 3]
    before = read_only_copy(cache)
    batch = torch.tensor(ids) if as_tensor else ids
    staging = poisoned(len(ids), kv.staged_block_bytes)
    kernels.gather_blocks(kv, batch, staging)
    assert torch.equal(staging, expected_gather(cache, ids, kv.staged_block_bytes))
    for block in ids:
        cache.storage[cache.block_bytes(block)] = 0
    kernels.scatter_blocks(kv, batch, staging)
    assert torch.equal(cache.storage, before)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_copy_block_prefix_copies_a_batch(cache, as_tensor):
    copies = [(0, 1, 3), (0, 2, SIZE), (4, 3, 0)]
    expected = read_only_copy(cache)
    for source, destination, num_tokens in copies:
        read = cache.block_bytes(source, num_tokens)
        expected[cache.block_bytes(destination, num_tokens)] = expected[read]
    kernels.copy_block_prefix(cache.describe(), torch.tensor(copies) if as_tensor else copies)
    assert torch.equal(cache.storage, expected)


def test_opaque_blocks_copy_whole_or_not_at_all(cache):
    kv = cache.describe(token_addressable=False)
    expected = read_only_copy(cache)
    expected[cache.block_bytes(2)] = expected[cache.block_bytes(5)]
    kernels.copy_block_prefix(kv, [(5, 2, SIZE), (4, 3, 0)])
    assert torch.equal(cache.storage, expected)
    with pytest.raises(KernelError, match="copy whole blocks"):
        kernels.copy_block_prefix(kv, [(5, 2, SIZE - 1)])


def test_empty_batches_move_nothing(cache):
    kv, before = cache.describe(), read_only_copy(cache)
    kernels.gather_blocks(kv, [], kv.empty_staging(0))
    kernels.scatter_blocks(kv, [], kv.empty_staging(0))
    kernels.copy_block_prefix(kv, [])
    assert torch.equal(cache.storage, before)


@pytest.mark.parametrize(
    ("block_ids", "message"),
    [
        ([6], "block id 6 is out of range, expected 0 to 5"),
        ([-1], "block id -1 is out of range"),
        (torch.tensor([0.0]), "torch.float32"),
        (torch.tensor([0], dtype=torch.int32), "torch.int32"),
        (torch.tensor([[0]]), "expected contiguous torch.int64"),
    ],
)
@pytest.mark.parametrize("operation", [kernels.gather_blocks, kernels.scatter_blocks])
def test_bad_block_ids_are_refused(cache, operation, block_ids, message):
    kv = cache.describe()
    with pytest.raises(KernelError, match=message):
        operation(kv, block_ids, kv.empty_staging(1))


def test_scattering_to_a_block_twice_is_refused(cache):
    kv = cache.describe()
    with pytest.raises(KernelError, match="block 3 twice"):
        kernels.scatter_blocks(kv, [3, 1, 3], kv.empty_staging(3))


@pytest.mark.parametrize(
    ("make_staging", "message"),
    [
        (lambda kv: kv.empty_staging(2), "expected torch.uint8"),
        (lambda kv: kv.empty_staging(1).view(torch.int8), "torch.int8"),
        (lambda kv: poisoned(1, kv.staged_block_bytes + 1), "expected torch.uint8"),
        (lambda kv: poisoned(1, 2 * kv.staged_block_bytes)[:, ::2], "contiguous rows"),
        (lambda kv: kv.storage[: kv.staged_block_bytes][None], "overlaps the KV cache"),
        (lambda kv: kv.empty_staging(1, torch.device("meta")), "is on meta, expected cpu"),
    ],
)
@pytest.mark.parametrize("operation", [kernels.gather_blocks, kernels.scatter_blocks])
def test_bad_staging_is_refused(cache, operation, make_staging, message):
    kv = cache.describe()
    with pytest.raises(KernelError, match=message):
        operation(kv, [0], make_staging(kv))


def test_rows_that_share_memory_are_refused(cache):
    kv = cache.describe()
    staging = kv.empty_staging(1).expand(2, -1)
    with pytest.raises(KernelError, match="0 bytes apart"):
        kernels.gather_blocks(kv, [0, 1], staging)


@pytest.mark.parametrize(
    ("copies", "message"),
    [
        ([(0, 1, 3), (2, 1, 3)], "block 1 twice"),
        ([(0, 1, 3), (1, 2, 3)], "block 1 is both source and destination"),
        ([(2, 2, 3)], "block 2 is both source and destination"),
        ([(0, 6, 3)], "block id 6 is out of range"),
        ([(0, 1, SIZE + 1)], "expected 0 to the block size 16"),
        ([(0, 1, -1)], "num_tokens is -1"),
        ([(0, 1)], r"not \[n, 3\] integers"),
        ([("a", "b", 3)], r"not \[n, 3\] integers"),
        (torch.zeros(2, 2, dtype=torch.int64), r"expected contiguous torch.int64 \[n, 3\]"),
        (torch.tensor([[0, 1, 3]], dtype=torch.int32), "torch.int32"),
    ],
)
def test_bad_copies_are_refused(cache, copies, message):
    before = read_only_copy(cache)
    with pytest.raises(KernelError, match=message):
        kernels.copy_block_prefix(cache.describe(), copies)
    assert torch.equal(cache.storage, before)


@pytest.fixture
def fresh_choices():
    dispatch._best_backend.cache_clear()
    yield
    dispatch._best_backend.cache_clear()


def test_the_compiled_core_serves_cpu_tensors(cpu_library, monkeypatch, fresh_choices):
    monkeypatch.setattr(dispatch, "CPU_LIBRARY", cpu_library)
    assert dispatch.choose_backend("cpu").name == "cpu"
    assert kernels.describe("cpu") == "block moves on cpu: cpu (cpu is the first choice)"


def test_without_a_library_plain_torch_serves_and_says_why(monkeypatch, tmp_path, fresh_choices):
    monkeypatch.setattr(dispatch, "CPU_LIBRARY", tmp_path / "_core.so")
    assert dispatch.choose_backend("cpu").backend is reference
    assert "cpu: reference (_core.so is not in" in kernels.describe("cpu")
    monkeypatch.setattr(dispatch, "CUDA_LIBRARY", tmp_path / "helium_cuda.so")
    assert "helium_cuda.so is not in" in kernels.describe("cuda")


def test_a_backend_serves_for_as_long_as_it_is_asked_to(cpu_library, monkeypatch, fresh_choices):
    monkeypatch.setattr(dispatch, "CPU_LIBRARY", cpu_library)
    with dispatch.use_backend("cpu", "reference"):
        assert dispatch.choose_backend("cpu").name == "reference"
        with dispatch.use_backend("cpu", "cpu"):
            assert dispatch.choose_backend("cpu").name == "cpu"
        assert dispatch.choose_backend("cpu").name == "reference"
    assert dispatch.choose_backend("cpu").name == "cpu"


def test_unknown_backends_are_refused():
    with pytest.raises(KernelError, match=r"available: \['cuda', 'triton', 'cpu', 'reference'\]"):
        dispatch.load_backend("opencl")
