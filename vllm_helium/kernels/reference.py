"""The block moves in plain torch: what every other backend must equal, bit for bit.

Works on any device, but reads tables and ids on the host, so it is neither asynchronous nor safe to
capture in a CUDA graph. Moves the widest elements that alignment allows, because torch indexes
element by element. A block id outside ``[0, num_blocks)`` moves nothing, here as in every backend:
padding for batches of a fixed size.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch


def gather_blocks(
    storage: torch.Tensor,
    runs: torch.Tensor,
    block_ids: torch.Tensor,
    staging: torch.Tensor,
    num_blocks: int,
    alignment: int,
    max_programs: int,
) -> None:
    """Copies block ``block_ids[i]`` of the cache to row ``i`` of the staging buffer.

    Args:
        storage: uint8 [allocation bytes].
        runs: int64 [num_runs, 6], columns as in `runs.Run`.
        block_ids: int64 [n].
        staging: uint8 [n, staged block bytes]; written.
        num_blocks: Blocks in the cache.
        alignment: The widest access, in bytes, that all addresses and lengths allow.
        max_programs: Ignored here; bounds the share of the device that a kernel takes.
    """
    rows, ids = _valid(block_ids, num_blocks)
    for plane, column in _planes_and_columns(storage, runs, staging, num_blocks, alignment):
        column[rows.to(column.device)] = plane[ids].to(column.device)


def scatter_blocks(
    storage: torch.Tensor,
    runs: torch.Tensor,
    block_ids: torch.Tensor,
    staging: torch.Tensor,
    num_blocks: int,
    alignment: int,
    max_programs: int,
) -> None:
    """Copies row ``i`` of the staging buffer to block ``block_ids[i]``; inverse of the gather.

    Arguments as in `gather_blocks`, but ``storage`` is written. Ids are distinct.
    """
    rows, ids = _valid(block_ids, num_blocks)
    for plane, column in _planes_and_columns(storage, runs, staging, num_blocks, alignment):
        plane[ids] = column[rows.to(column.device)].to(plane.device)


def copy_block_prefix(
    storage: torch.Tensor,
    runs: torch.Tensor,
    copies: torch.Tensor,
    num_blocks: int,
    alignment: int,
    max_programs: int,
) -> None:
    """Copies the first tokens of one block to another, for a batch of pairs, in all layers.

    Args:
        storage: uint8 [allocation bytes]; written.
        runs: int64 [num_runs, 6], columns as in `runs.Run`.
        copies: int64 [n, 3]: source block, destination block, number of tokens. Destinations are
            distinct and no block is both source and destination.
        num_blocks: Blocks in the cache.
        alignment: As in `gather_blocks`, without a staging buffer.
        max_programs: Ignored here.
    """
    sources, destinations, num_tokens = copies.unbind(1)
    inside = (sources >= 0) & (sources < num_blocks)
    inside &= (destinations >= 0) & (destinations < num_blocks)
    sources, destinations, num_tokens = sources[inside], destinations[inside], num_tokens[inside]
    memory = _elements(storage, alignment)
    size = memory.element_size()
    for offset, stride, first_token, run_tokens, token_bytes, _ in runs.tolist():
        plane = _plane(memory, offset, stride, run_tokens * token_bytes, num_blocks)
        counts = (num_tokens - first_token).clamp(0, run_tokens) * (token_bytes // size)
        for count in counts.unique().tolist():
            chosen = counts == count
            plane[destinations[chosen], :count] = plane[sources[chosen], :count]


def _valid(block_ids: torch.Tensor, num_blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
    [rows] = ((block_ids >= 0) & (block_ids < num_blocks)).nonzero(as_tuple=True)
    return rows, block_ids[rows]


def _planes_and_columns(
    storage: torch.Tensor,
    runs: torch.Tensor,
    staging: torch.Tensor,
    num_blocks: int,
    alignment: int,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields each run as [num_blocks, run elements] of the cache and [n, run elements] staged."""
    memory = _elements(storage, alignment)
    size = memory.element_size()
    staged_rows = staging.view(memory.dtype)
    for offset, stride, _, num_tokens, token_bytes, staged in runs.tolist():
        num_bytes = num_tokens * token_bytes
        plane = _plane(memory, offset, stride, num_bytes, num_blocks)
        yield plane, staged_rows[:, staged // size : (staged + num_bytes) // size]


def _elements(storage: torch.Tensor, alignment: int) -> torch.Tensor:
    """Returns an allocation as its widest elements, without the bytes that do not fill one."""
    dtype = {1: torch.uint8, 2: torch.int16, 4: torch.int32}.get(alignment, torch.int64)
    return storage[: len(storage) // dtype.itemsize * dtype.itemsize].view(dtype)


def _plane(
    memory: torch.Tensor, offset: int, stride: int, num_bytes: int, num_blocks: int
) -> torch.Tensor:
    """Returns one run of all blocks, [num_blocks, run elements]."""
    size = memory.element_size()
    return memory.as_strided((num_blocks, num_bytes // size), (stride // size, 1), offset // size)
