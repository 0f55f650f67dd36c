"""The block moves in Triton: one launch over all layers, a loop over (block, run) items.

Each function equals the one of the same name in `reference`, bit for bit. Nothing here reads device
memory on the host or allocates, so launches can be captured in a CUDA graph once compiled.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

RUN_COLUMNS = tl.constexpr(6)
ITERATION_BYTES = 8192
"""Bytes one program moves per iteration: 64 for each of its 128 threads."""

_ELEMENTS = {1: tl.uint8, 2: tl.int16, 4: tl.int32, 8: tl.int64, 16: tl.int64}


@triton.jit
def _copy_bytes(
    src,
    dst,
    num_bytes,
    ELEMENT: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    ITERATION_BYTES: tl.constexpr,
):
    # Numbers read from a table carry no hint that a 16-byte access is aligned.
    SIZE: tl.constexpr = ELEMENT.primitive_bitwidth // 8
    LANES: tl.constexpr = ITERATION_BYTES // SIZE
    src = src.to(tl.pointer_type(ELEMENT))
    dst = dst.to(tl.pointer_type(ELEMENT))
    count = tl.multiple_of(num_bytes // SIZE, ALIGNMENT // SIZE)
    lanes = tl.arange(0, LANES)
    start = count * 0
    while start < count:
        index = tl.multiple_of(start, LANES) + lanes
        inside = index < count
        tl.store(dst + index, tl.load(src + index, mask=inside), mask=inside)
        start += LANES


@triton.jit(do_not_specialize=["num_runs", "num_ids", "num_blocks", "staging_stride"])
def _move_blocks_kernel(
    storage,
    runs,
    block_ids,
    staging,
    num_runs,
    num_ids,
    num_blocks,
    staging_stride,
    TO_STAGING: tl.constexpr,
    ELEMENT: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    ITERATION_BYTES: tl.constexpr,
):
    item = tl.program_id(0)
    while item < num_ids * num_runs:
        row = item // num_runs
        block = tl.load(block_ids + row)
        if (block >= 0) & (block < num_blocks):
            run = runs + (item % num_runs) * RUN_COLUMNS
            block_offset = tl.load(run) + block * tl.load(run + 1)
            num_bytes = tl.load(run + 3) * tl.load(run + 4)
            staged_offset = row.to(tl.int64) * staging_stride + tl.load(run + 5)
            cached = storage + tl.multiple_of(block_offset, ALIGNMENT)
            staged = staging + tl.multiple_of(staged_offset, ALIGNMENT)
            if TO_STAGING:
                _copy_bytes(cached, staged, num_bytes, ELEMENT, ALIGNMENT, ITERATION_BYTES)
            else:
                _copy_bytes(staged, cached, num_bytes, ELEMENT, ALIGNMENT, ITERATION_BYTES)
        item += tl.num_programs(0)


@triton.jit(do_not_specialize=["num_runs", "num_copies", "num_blocks"])
def _copy_block_prefix_kernel(
    storage,
    runs,
    copies,
    num_runs,
    num_copies,
    num_blocks,
    ELEMENT: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    ITERATION_BYTES: tl.constexpr,
):
    item = tl.program_id(0)
    while item < num_copies * num_runs:
        copy = copies + (item // num_runs) * 3
        src_block = tl.load(copy)
        dst_block = tl.load(copy + 1)
        run = runs + (item % num_runs) * RUN_COLUMNS
        num_tokens = tl.minimum(tl.load(copy + 2) - tl.load(run + 2), tl.load(run + 3))
        inside = (src_block >= 0) & (src_block < num_blocks)
        inside = inside & (dst_block >= 0) & (dst_block < num_blocks) & (num_tokens > 0)
        if inside:
            offset = tl.load(run)
            stride = tl.load(run + 1)
            src = storage + tl.multiple_of(offset + src_block * stride, ALIGNMENT)
            dst = storage + tl.multiple_of(offset + dst_block * stride, ALIGNMENT)
            num_bytes = num_tokens * tl.load(run + 4)
            _copy_bytes(src, dst, num_bytes, ELEMENT, ALIGNMENT, ITERATION_BYTES)
        item += tl.num_programs(0)


def gather_blocks(
    storage: torch.Tensor,
    runs: torch.Tensor,
    block_ids: torch.Tensor,
    staging: torch.Tensor,
    num_blocks: int,
    alignment: int,
    max_programs: int,
) -> None:
    """As `reference.gather_blocks`; ``staging`` may be pinned host memory."""
    _move_blocks(storage, runs, block_ids, staging, num_blocks, alignment, max_programs, True)


def scatter_blocks(
    storage: torch.Tensor,
    runs: torch.Tensor,
    block_ids: torch.Tensor,
    staging: torch.Tensor,
    num_blocks: int,
    alignment: int,
    max_programs: int,
) -> None:
    """As `reference.scatter_blocks`; ``staging`` may be pinned host memory."""
    _move_blocks(storage, runs, block_ids, staging, num_blocks, alignment, max_programs, False)


def copy_block_prefix(
    storage: torch.Tensor,
    runs: torch.Tensor,
    copies: torch.Tensor,
    num_blocks: int,
    alignment: int,
    max_programs: int,
) -> None:
    """As `reference.copy_block_prefix`."""
    num_copies, num_runs = len(copies), len(runs)
    if num_copies * num_runs == 0:
        return
    with torch.cuda.device_of(storage):
        _copy_block_prefix_kernel[(min(num_copies * num_runs, max_programs),)](
            storage,
            runs,
            copies,
            num_runs,
            num_copies,
            num_blocks,
            ELEMENT=_ELEMENTS[alignment],
            ALIGNMENT=alignment,
            ITERATION_BYTES=ITERATION_BYTES,
        )


def _move_blocks(
    storage: torch.Tensor,
    runs: torch.Tensor,
    block_ids: torch.Tensor,
    staging: torch.Tensor,
    num_blocks: int,
    alignment: int,
    max_programs: int,
    to_staging: bool,
) -> None:
    num_ids, num_runs = len(block_ids), len(runs)
    if num_ids * num_runs == 0:
        return
    with torch.cuda.device_of(storage):
        _move_blocks_kernel[(min(num_ids * num_runs, max_programs),)](
            storage,
            runs,
            block_ids,
            staging,
            num_runs,
            num_ids,
            num_blocks,
            staging.stride(0),
            TO_STAGING=to_staging,
            ELEMENT=_ELEMENTS[alignment],
            ALIGNMENT=alignment,
            ITERATION_BYTES=ITERATION_BYTES,
        )
