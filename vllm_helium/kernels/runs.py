"""Cuts strided KV cache views into runs: contiguous bytes that every block has at the same place.

This is the only module that knows about layouts. A *run* says where some bytes of block 0 begin in
the allocation, how far apart they are from block to block, and which tokens they belong to. Every
layout of vLLM 0.32 (layers, blocks, heads and tokens in any order, padded or packed) becomes a list
of runs, and every kernel is then the same loop over them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod

RUN_COLUMNS = 6
"""Columns of a run table; the order is that of `BlockRun` in csrc/include/helium/block_moves.h."""


@dataclass(frozen=True)
class Run:
    """Bytes of one block that lie together, in every block alike.

    Attributes:
        offset: Where block 0's bytes begin, in bytes from the start of the allocation.
        block_stride: Bytes from a block to the next one.
        first_token: The first token of the block whose bytes are here.
        num_tokens: How many tokens have their bytes here.
        token_bytes: Bytes per token; a run holds ``num_tokens * token_bytes``. Where tokens cannot
            be told apart, the whole run counts as one token.
        staged_offset: Where the run begins in a staged block, in bytes.
    """

    offset: int
    block_stride: int
    first_token: int
    num_tokens: int
    token_bytes: int
    staged_offset: int = 0

    @property
    def num_bytes(self) -> int:
        return self.num_tokens * self.token_bytes

    def row(self) -> tuple[int, int, int, int, int, int]:
        """The run as a row of the table that kernels read."""
        return (
            self.offset,
            self.block_stride,
            self.first_token,
            self.num_tokens,
            self.token_bytes,
            self.staged_offset,
        )


@dataclass(frozen=True)
class ViewGeometry:
    """One layer's cache view in bytes, its first axis folded to (block, kernel block).

    Attributes:
        offset: Byte offset of the view's first element.
        block_stride: Bytes between blocks.
        axes: ``(size, stride in bytes)`` of the axes below the block: kernel blocks of a block,
            then the view's axes but the first, then the element's bytes with stride 1.
    """

    offset: int
    block_stride: int
    axes: tuple[tuple[int, int], ...]


def block_runs(view: ViewGeometry) -> list[Run]:
    """Returns the fewest runs that hold all bytes of a block; tokens are not told apart."""
    starts, num_bytes = _contiguous_pieces(view.axes)
    return [Run(view.offset + start, view.block_stride, 0, 1, num_bytes) for start in starts]


def token_runs(view: ViewGeometry) -> list[Run]:
    """Returns runs that keep tokens apart, for a view ``[blocks, heads, tokens, content]``."""
    (num_kernel_blocks, kernel_stride), heads, (num_tokens, token_stride), *content = view.axes
    starts, token_bytes = _contiguous_pieces((heads, *content))
    runs = []
    for kernel_block, start in product(range(num_kernel_blocks), starts):
        offset = view.offset + kernel_block * kernel_stride + start
        first = kernel_block * num_tokens
        if token_stride == token_bytes or num_tokens == 1:
            runs.append(Run(offset, view.block_stride, first, num_tokens, token_bytes))
        else:
            runs += [
                Run(offset + token * token_stride, view.block_stride, first + token, 1, token_bytes)
                for token in range(num_tokens)
            ]
    return runs


def merge_runs(runs: Iterable[Run], *, whole_blocks: bool) -> list[Run]:
    """Sorts runs by offset, drops equal ones and joins neighbours.

    Layers that share their cache give equal runs. A joined run stays within one block's stride, so
    blocks never overlap; with ``whole_blocks`` tokens no longer matter and any neighbours join.

    Raises:
        ValueError: Two runs share some bytes but not all of them.
    """
    merged: list[Run] = []
    for run in sorted(set(runs), key=lambda run: (run.offset, run.first_token)):
        last = merged[-1] if merged else None
        end = last.offset + last.num_bytes if last else run.offset
        if run.offset < end:
            raise ValueError(f"bytes {run.offset} to {end} of block 0 belong to two views")
        if last and run.offset == end and _joinable(last, run, whole_blocks):
            if whole_blocks:
                merged[-1] = replace(last, token_bytes=last.token_bytes + run.token_bytes)
            else:
                merged[-1] = replace(last, num_tokens=last.num_tokens + run.num_tokens)
        else:
            merged.append(run)
    return merged


def check_blocks_apart(runs: Iterable[Run], num_blocks: int) -> None:
    """Checks that no byte belongs to two blocks.

    Raises:
        ValueError: The bytes of neighbouring blocks overlap, as where cache groups with different
            pages share an allocation.
    """
    start = end = stride = 0
    for run in sorted(runs, key=lambda run: run.offset):
        if run.offset >= end:
            start, stride = run.offset, run.block_stride
        if run.block_stride != stride or run.offset + run.num_bytes - start > stride:
            raise ValueError(f"bytes from {start} on belong to two blocks")
        end = max(end, run.offset + (num_blocks - 1) * stride + run.num_bytes)


def split_runs(runs: Iterable[Run], max_bytes: int) -> list[Run]:
    """Cuts long runs so that each is a fair share of work, between tokens where there are many."""
    return [piece for run in runs for piece in _pieces(run, max_bytes)]


def place_in_staging(runs: Sequence[Run]) -> list[Run]:
    """Lays the runs one after the other in a staged block."""
    placed, staged_offset = [], 0
    for run in runs:
        placed.append(replace(run, staged_offset=staged_offset))
        staged_offset += run.num_bytes
    return placed


def common_alignment(*values: int) -> int:
    """Returns the widest access, in bytes out of 1, 2, 4, 8 and 16, that divides all values."""
    alignment = 16
    for value in values:
        while value % alignment:
            alignment //= 2
    return alignment


def run_alignment(runs: Iterable[Run]) -> int:
    """Returns the widest access that suits every run from its first byte to its last."""
    columns = ((run.offset, run.block_stride, run.token_bytes, run.staged_offset) for run in runs)
    return common_alignment(*(value for row in columns for value in row))


def _contiguous_pieces(axes: Sequence[tuple[int, int]]) -> tuple[list[int], int]:
    """Splits strided bytes into contiguous pieces: where they begin, and their common length."""
    num_bytes = 1
    outer = sorted((axis for axis in axes if axis[0] > 1), key=lambda axis: axis[1])
    while outer and outer[0][1] == num_bytes:
        num_bytes *= outer.pop(0)[0]
    steps = [range(0, size * stride, stride) for size, stride in reversed(outer)]
    starts = [sum(step) for step in product(*steps)]
    assert len(starts) * num_bytes == prod(size for size, _ in axes), "pieces cover every byte"
    return starts, num_bytes


def _joinable(last: Run, run: Run, whole_blocks: bool) -> bool:
    if last.block_stride != run.block_stride:
        return False
    if last.num_bytes + run.num_bytes > run.block_stride:
        return False
    if whole_blocks:
        return True
    in_order = last.first_token + last.num_tokens == run.first_token
    return in_order and last.token_bytes == run.token_bytes


def _pieces(run: Run, max_bytes: int) -> Iterator[Run]:
    if run.num_bytes <= max_bytes:
        yield run
        return
    if run.num_tokens > 1:
        step = max(1, max_bytes // run.token_bytes)
        for start in range(0, run.num_tokens, step):
            piece = replace(
                run,
                offset=run.offset + start * run.token_bytes,
                first_token=run.first_token + start,
                num_tokens=min(step, run.num_tokens - start),
                staged_offset=run.staged_offset + start * run.token_bytes,
            )
            yield from _pieces(piece, max_bytes)
        return
    for start in range(0, run.token_bytes, max_bytes):
        yield replace(
            run,
            offset=run.offset + start,
            token_bytes=min(max_bytes, run.token_bytes - start),
            staged_offset=run.staged_offset + start,
        )
