"""The block moves, checked at the edge and asynchronous on the current stream.

Block ids may be Python integers or host tensors: they are checked, then sent to the device. Or they
are int64 tensors on the cache's CUDA device: their values stay unknown to the host, so a call
allocates nothing, synchronizes nothing and can be captured in a CUDA graph; ids outside the cache
move nothing, which serves as padding, and keeping ids distinct is up to the caller.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vllm_helium.kernels import (
    checks,
    ops,  # noqa: F401  registers the operators
)
from vllm_helium.kernels.kv_blocks import KVBlocks
from vllm_helium.kernels.runs import common_alignment

PROGRAMS_PER_MULTIPROCESSOR = 8
"""Bound on the grid for moves within the device: full multiprocessors, twice over."""

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
    ids = checks.as_batch(block_ids, columns=())
    checks.check_staging(kv, staging, len(ids))
    if not ids.is_cuda:
        checks.check_blocks(kv, ids.tolist())
    torch.ops.vllm_helium.gather_blocks(
        kv.storage,
        kv.blocks.rows,
        checks.to_device(kv, ids),
        staging,
        kv.num_blocks,
        staged_alignment(kv, staging),
        max_programs(kv, staging),
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
    ids = checks.as_batch(block_ids, columns=())
    checks.check_staging(kv, staging, len(ids))
    if not ids.is_cuda:
        checks.check_blocks(kv, ids.tolist())
        checks.check_distinct(ids.tolist(), "block_ids")
    torch.ops.vllm_helium.scatter_blocks(
        kv.storage,
        kv.blocks.rows,
        checks.to_device(kv, ids),
        staging,
        kv.num_blocks,
        staged_alignment(kv, staging),
        max_programs(kv, staging),
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
    batch = checks.as_batch(copies, columns=(3,))
    if not batch.is_cuda:
        checks.check_copies(kv, batch.tolist())
    table = kv.tokens or kv.blocks
    torch.ops.vllm_helium.copy_block_prefix(
        kv.storage,
        table.rows,
        checks.to_device(kv, batch),
        kv.num_blocks,
        table.alignment,
        max_programs(kv, kv.storage),
    )


def staged_alignment(kv: KVBlocks, staging: torch.Tensor) -> int:
    """Returns the widest access, in bytes, that suits the cache and a staging buffer."""
    return common_alignment(kv.blocks.alignment, staging.data_ptr(), staging.stride(0))


def max_programs(kv: KVBlocks, other: torch.Tensor) -> int:
    """Returns how many thread blocks a move between the cache and a buffer may take."""
    if not other.is_cuda:
        return HOST_PROGRAMS
    properties = torch.cuda.get_device_properties(kv.device)
    return properties.multi_processor_count * PROGRAMS_PER_MULTIPROCESSOR
