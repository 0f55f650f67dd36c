"""The block moves in plain torch: what every other backend must equal, bit for bit.

Works on any device, but reads tables and ids on the host, so it is neither asynchronous nor safe to
capture in a CUDA graph. A block id outside ``[0, num_blocks)`` moves nothing, here as in every
backend: padding for batches of a fixed size.
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
        alignment: Ignored here; the widest access, in bytes, that a kernel may use.
        max_programs: Ignored here; bounds the share of the device that a kernel takes.
    """
    rows, ids = _valid(block_ids, num_blocks)
    for plane, (_, _, num_bytes, staged) in _planes(storage, runs, num_blocks):
        column = staging[:, staged : staged + num_bytes]
        column[rows.to(staging.device)] = plane[ids].to(staging.device)


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
    for plane, (_, _, num_bytes, staged) in _planes(storage, runs, num_blocks):
        column = staging[:, staged : staged + num_bytes]
        plane[ids] = column[rows.to(staging.device)].to(storage.device)


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
        alignment: Ignored here.
        max_programs: Ignored here.
    """
    sources, destinations, num_tokens = copies.unbind(1)
    inside = (sources >= 0) & (sources < num_blocks)
    inside &= (destinations >= 0) & (destinations < num_blocks)
    sources, destinations, num_tokens = sources[inside], destinations[inside], num_tokens[inside]
    for plane, (first_token, token_bytes, num_bytes, _) in _planes(storage, runs, num_blocks):
        counts = ((num_tokens - first_token) * token_bytes).clamp(0, num_bytes)
        for count in counts.unique().tolist():
            chosen = counts == count
            plane[destinations[chosen], :count] = plane[sources[chosen], :count]


def _valid(block_ids: torch.Tensor, num_blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
    [rows] = ((block_ids >= 0) & (block_ids < num_blocks)).nonzero(as_tuple=True)
    return rows, block_ids[rows]


def _planes(
    storage: torch.Tensor, runs: torch.Tensor, num_blocks: int
) -> Iterator[tuple[torch.Tensor, tuple[int, int, int, int]]]:
    """Yields each run as a view [num_blocks, run bytes] with its other numbers."""
    for offset, stride, first_token, num_tokens, token_bytes, staged in runs.tolist():
        num_bytes = num_tokens * token_bytes
        plane = storage.as_strided((num_blocks, num_bytes), (stride, 1), offset)
        yield plane, (first_token, token_bytes, num_bytes, staged)
