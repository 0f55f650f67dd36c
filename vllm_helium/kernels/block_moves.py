"""The block moves, checked at the edge and asynchronous on the current stream.

Block ids may be Python integers or host tensors: they are checked, then sent to the device. Or they
are int64 tensors on the cache's device: their values stay unknown to the host, so a call allocates
nothing, synchronizes nothing and can be captured in a CUDA graph; ids outside the cache move
nothing, which serves as padding, and keeping ids distinct is up to the caller.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from helium.errors import KernelError
from vllm_helium.kernels import ops  # noqa: F401  registers the operators
from vllm_helium.kernels.kv_blocks import KVBlocks
from vllm_helium.kernels.runs import common_alignment

PROGRAMS_PER_MULTIPROCESSOR = 8
"""Thread blocks of 256 threads that fill a multiprocessor's 2,048 threads."""

HOST_PROGRAMS = 32
"""Thread blocks when host memory is on one side: the link is slow, so few keep it busy and the rest
of the device computes. 32 of 256 threads with 64 bytes each hold 512 KiB in flight."""


def gather_blocks(
    kv: KVBlocks, block_ids: Sequence[int] | torch.Tensor, staging: torch.Tensor
) -> None:
    """Copies blocks of all layers to the rows of a staging buffer.

    Args:
        kv: The cache.
        block_ids: int64 [n] or n integers.
        staging: uint8 [n, kv.staged_block_bytes] with contiguous rows, on the cache's device or in
            pinned host memory; written.

    Raises:
        KernelError: A shape, type, device or host-known id does not fit.
    """
    _check_staging(kv, staging, len(block_ids))
    ids = _device_ids(kv, block_ids, columns=())
    torch.ops.vllm_helium.gather_blocks(
        kv.storage,
        kv.blocks.rows,
        ids,
        staging,
        kv.num_blocks,
        _staged_alignment(kv, staging),
        _max_programs(kv, staging),
    )


def scatter_blocks(
    kv: KVBlocks, block_ids: Sequence[int] | torch.Tensor, staging: torch.Tensor
) -> None:
    """Copies the rows of a staging buffer back to blocks; the inverse of `gather_blocks`.

    Args:
        kv: The cache; written.
        block_ids: int64 [n] or n integers, distinct.
        staging: As in `gather_blocks`; read.

    Raises:
        KernelError: A shape, type, device or host-known id does not fit, or an id comes twice.
    """
    _check_staging(kv, staging, len(block_ids))
    ids = _device_ids(kv, block_ids, columns=())
    if (host_ids := _host_rows(block_ids)) is not None:
        _check_distinct(host_ids, "block_ids")
    torch.ops.vllm_helium.scatter_blocks(
        kv.storage,
        kv.blocks.rows,
        ids,
        staging,
        kv.num_blocks,
        _staged_alignment(kv, staging),
        _max_programs(kv, staging),
    )


def copy_block_prefix(kv: KVBlocks, copies: Sequence[tuple[int, int, int]] | torch.Tensor) -> None:
    """Copies the first tokens of blocks to other blocks, in all layers, in one launch.

    Where the cache's tokens cannot be told apart (`KVBlocks.tokens` is ``None``) only whole blocks
    move: ``num_tokens`` is 0 or ``kv.block_size``.

    Args:
        kv: The cache; written. What follows the copied tokens in a destination stays as it is.
        copies: int64 [n, 3] or n triples: source block, destination block, number of tokens.
            Destinations are distinct and no block is both source and destination.

    Raises:
        KernelError: A shape, type, device or host-known value does not fit, or blocks overlap.
    """
    if (rows := _host_rows(copies)) is not None:
        _check_copies(kv, rows)
    batch = _device_ids(kv, copies, columns=(3,))
    table = kv.tokens or kv.blocks
    torch.ops.vllm_helium.copy_block_prefix(
        kv.storage, table.rows, batch, kv.num_blocks, table.alignment, _max_programs(kv, kv.storage)
    )


def _host_rows(batch: Sequence | torch.Tensor) -> list | None:
    """Returns what the host knows of a batch without waiting for the device."""
    if not isinstance(batch, torch.Tensor):
        return list(batch)
    return None if batch.is_cuda else batch.tolist()


def _device_ids(
    kv: KVBlocks, batch: Sequence | torch.Tensor, columns: tuple[int, ...]
) -> torch.Tensor:
    rows = _host_rows(batch)
    if rows is not None:
        blocks = rows if not columns else [block for row in rows for block in row[:2]]
        for block in blocks:
            if not 0 <= block < kv.num_blocks:
                raise KernelError(
                    f"block id {block} is out of range, expected 0 to {kv.num_blocks - 1}; "
                    "pass ids of this cache"
                )
    if not isinstance(batch, torch.Tensor):
        batch = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), *columns)
    if batch.dtype != torch.int64 or batch.shape[1:] != columns or not batch.is_contiguous():
        raise KernelError(
            f"a batch of blocks is {batch.dtype} {tuple(batch.shape)}, expected contiguous "
            f"torch.int64 [n{''.join(f', {size}' for size in columns)}]; convert it"
        )
    if batch.device == kv.device:
        return batch
    if batch.is_cuda:
        raise KernelError(
            f"a batch of blocks is on {batch.device}, expected {kv.device} or the host; move it"
        )
    return batch.pin_memory().to(kv.device, non_blocking=True)


def _check_staging(kv: KVBlocks, staging: torch.Tensor, num_rows: int) -> None:
    expected = (num_rows, kv.staged_block_bytes)
    if staging.dtype != torch.uint8 or tuple(staging.shape) != expected or staging.stride(1) != 1:
        raise KernelError(
            f"staging is {staging.dtype} {tuple(staging.shape)} with strides {staging.stride()}, "
            f"expected torch.uint8 {expected} with contiguous rows; use KVBlocks.empty_staging"
        )
    if num_rows > 1 and staging.stride(0) < kv.staged_block_bytes:
        raise KernelError(
            f"staging rows are {staging.stride(0)} bytes apart, expected at least "
            f"{kv.staged_block_bytes}; pass no expanded buffer"
        )
    pinned = kv.device.type == "cuda" and staging.device.type == "cpu" and staging.is_pinned()
    if staging.device != kv.device and not pinned:
        raise KernelError(
            f"staging is on {staging.device}, expected {kv.device} or pinned host memory"
        )
    if staging.untyped_storage().data_ptr() == kv.storage.untyped_storage().data_ptr():
        raise KernelError("staging overlaps the KV cache; use a buffer of its own")


def _check_distinct(blocks: list[int], name: str) -> None:
    if len(set(blocks)) != len(blocks):
        twice = next(block for block in blocks if blocks.count(block) > 1)
        raise KernelError(f"{name} holds block {twice} twice, expected distinct blocks")


def _check_copies(kv: KVBlocks, rows: list) -> None:
    if any(len(row) != 3 for row in rows):
        raise KernelError("copies hold (source block, destination block, number of tokens) each")
    _check_distinct([row[1] for row in rows], "the destinations of copies")
    if both := {row[0] for row in rows} & {row[1] for row in rows}:
        raise KernelError(f"block {min(both)} is both source and destination; copy it in two calls")
    for _, _, num_tokens in rows:
        if not 0 <= num_tokens <= kv.block_size:
            raise KernelError(
                f"num_tokens is {num_tokens}, expected 0 to the block size {kv.block_size}"
            )
        if kv.tokens is None and num_tokens not in (0, kv.block_size):
            raise KernelError(
                f"num_tokens is {num_tokens}, expected the block size {kv.block_size}: the order "
                "of tokens inside this cache's blocks is not known; copy whole blocks"
            )


def _staged_alignment(kv: KVBlocks, staging: torch.Tensor) -> int:
    return common_alignment(kv.blocks.alignment, staging.data_ptr(), staging.stride(0))


def _max_programs(kv: KVBlocks, other: torch.Tensor) -> int:
    if not other.is_cuda:
        return HOST_PROGRAMS
    properties = torch.cuda.get_device_properties(kv.device)
    return properties.multi_processor_count * PROGRAMS_PER_MULTIPROCESSOR
