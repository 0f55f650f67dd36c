"""What the kernels know of a KV cache: one allocation and where each block's bytes are in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from helium.errors import KernelError
from vllm_helium.kernels import runs as run_tables
from vllm_helium.kernels.runs import Run, ViewGeometry

MAX_RUN_BYTES = 16 * 1024
"""Longest run on a GPU: one thread block's share, four 16-byte accesses for each of 256 threads."""


@dataclass(frozen=True)
class RunTable:
    """Runs as the kernels read them.

    Attributes:
        rows: int64 [num_runs, 6] on the cache's device, columns as in `runs.Run`.
        alignment: The widest access in bytes that suits all runs; a power of two, at most 16.
    """

    rows: torch.Tensor
    alignment: int

    @classmethod
    def of(cls, runs: Sequence[Run], device: torch.device) -> RunTable:
        rows = torch.tensor([run.row() for run in runs], dtype=torch.int64)
        return cls(
            rows.reshape(len(runs), run_tables.RUN_COLUMNS).to(device),
            run_tables.run_alignment(runs),
        )


@dataclass(frozen=True)
class KVBlocks:
    """The blocks of a KV cache, for the block-move kernels.

    Build one with `from_views` when the caches are registered; it holds the allocation, so it must
    go when the caches go. Nothing in it changes afterwards, and no kernel launch allocates.

    Attributes:
        storage: uint8 [allocation bytes], the allocation behind all views.
        num_blocks: Blocks in the cache; ids run from 0 to ``num_blocks - 1``.
        block_size: Tokens per block.
        staged_block_bytes: Bytes of one block in a staging buffer: all its bytes without padding,
            in the order of their addresses.
        blocks: Runs of whole blocks.
        tokens: Runs that keep tokens apart, or ``None`` where the order of bytes inside a block is
            the backend's own, as on the CPU: such blocks move whole or not at all.
    """

    storage: torch.Tensor
    num_blocks: int
    block_size: int
    staged_block_bytes: int
    blocks: RunTable
    tokens: RunTable | None

    @classmethod
    def from_views(
        cls,
        views: Iterable[torch.Tensor],
        num_blocks: int,
        block_size: int,
        *,
        token_addressable: bool,
        max_run_bytes: int | None = None,
    ) -> KVBlocks:
        """Describes the caches of all layers, going by their strides alone.

        Args:
            views: One view per layer, ``[num_blocks * k, ...]`` with ``k`` kernel blocks per block;
                with ``token_addressable``, ``[num_blocks * k, heads, block_size / k, content]``.
                Any strides and element type; all in one allocation. A view may come twice.
            num_blocks: Blocks in the cache, as the scheduler counts them.
            block_size: Tokens per block, as the scheduler counts them.
            token_addressable: Whether axis 2 of the views tells tokens apart.
            max_run_bytes: Longest run; by default 16 KiB on a GPU and unlimited on the CPU.

        Raises:
            KernelError: The views do not fit each other, ``num_blocks`` or ``block_size``.
        """
        views = list(views)
        storage = _common_storage(views)
        shapes = [_geometry(view, num_blocks) for view in views]
        if token_addressable:
            for view in views:
                _check_token_axis(view, num_blocks, block_size)
        if max_run_bytes is None:
            max_run_bytes = MAX_RUN_BYTES if storage.is_cuda else storage.numel()
        try:
            merged = run_tables.merge_runs(
                (run for shape in shapes for run in run_tables.block_runs(shape)),
                whole_blocks=True,
            )
            run_tables.check_blocks_apart(merged, num_blocks)
            by_token = (
                run_tables.merge_runs(
                    (run for shape in shapes for run in run_tables.token_runs(shape)),
                    whole_blocks=False,
                )
                if token_addressable
                else None
            )
        except ValueError as error:
            raise KernelError(
                f"KV cache views overlap: {error}; pass the views of one cache group"
            ) from error
        placed = run_tables.split_runs(run_tables.place_in_staging(merged), max_run_bytes)
        return cls(
            storage=storage,
            num_blocks=num_blocks,
            block_size=block_size,
            staged_block_bytes=sum(run.num_bytes for run in merged),
            blocks=RunTable.of(placed, storage.device),
            tokens=None
            if by_token is None
            else RunTable.of(run_tables.split_runs(by_token, max_run_bytes), storage.device),
        )

    @property
    def device(self) -> torch.device:
        return self.storage.device

    def empty_staging(self, num_blocks: int, device: torch.device | None = None) -> torch.Tensor:
        """Returns an uninitialised uint8 [num_blocks, staged_block_bytes] on a device."""
        shape = (num_blocks, self.staged_block_bytes)
        return torch.empty(shape, dtype=torch.uint8, device=device or self.device)


def _common_storage(views: Sequence[torch.Tensor]) -> torch.Tensor:
    if not views:
        raise KernelError("no KV cache view was given; pass one per layer")
    storages = {(view.device, view.untyped_storage().data_ptr()) for view in views}
    if len(storages) > 1:
        raise KernelError(
            f"KV cache views lie in {len(storages)} allocations, expected one; "
            "build one KVBlocks per allocation"
        )
    view = views[0]
    if view.device.type not in ("cpu", "cuda"):
        raise KernelError(f"KV caches are on {view.device}, expected a cuda device or the cpu")
    storage = torch.empty(0, dtype=torch.uint8, device=view.device)
    return storage.set_(view.untyped_storage())


def _geometry(view: torch.Tensor, num_blocks: int) -> ViewGeometry:
    shape, strides = tuple(view.shape), view.stride()
    if num_blocks <= 0 or view.ndim < 2 or view.numel() == 0 or shape[0] % num_blocks:
        raise KernelError(
            f"a KV cache view has shape {shape}, expected a first axis that is a multiple of "
            f"num_blocks = {num_blocks} and at least one more; check num_blocks"
        )
    if any(size > 1 and stride <= 0 for size, stride in zip(shape, strides, strict=True)):
        raise KernelError(
            f"a KV cache view has strides {strides}, expected positive ones; pass no expanded view"
        )
    kernel_blocks, itemsize = shape[0] // num_blocks, view.element_size()
    axes = [(kernel_blocks, strides[0] * itemsize)]
    axes += [(size, stride * itemsize) for size, stride in zip(shape[1:], strides[1:], strict=True)]
    return ViewGeometry(
        offset=view.storage_offset() * itemsize,
        block_stride=strides[0] * itemsize * kernel_blocks,
        axes=(*axes, (itemsize, 1)),
    )


def _check_token_axis(view: torch.Tensor, num_blocks: int, block_size: int) -> None:
    shape = tuple(view.shape)
    if view.ndim != 4 or shape[0] // num_blocks * shape[2] != block_size:
        raise KernelError(
            f"a KV cache view has shape {shape}, expected [{num_blocks} * k, heads, "
            f"{block_size} / k, content]; pass token_addressable=False to move whole blocks only"
        )
