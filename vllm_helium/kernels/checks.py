"""What the checked calls refuse; every message says what was expected and what to do."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from helium.errors import KernelError
from vllm_helium.kernels.kv_blocks import KVBlocks


def as_batch(batch: Sequence | torch.Tensor, columns: tuple[int, ...]) -> torch.Tensor:
    """Returns a batch as a contiguous int64 tensor ``[n, *columns]``, where it is."""
    if not isinstance(batch, torch.Tensor):
        rows = list(batch)
        try:
            batch = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), *columns)
        except (TypeError, ValueError, RuntimeError) as error:
            raise KernelError(
                f"a batch of blocks is not {_shape(columns)} integers: {error}; got {rows[:3]}"
            ) from error
    fits = batch.dtype == torch.int64 and batch.ndim == 1 + len(columns)
    if not fits or tuple(batch.shape[1:]) != columns or not batch.is_contiguous():
        raise KernelError(
            f"a batch of blocks is {batch.dtype} {tuple(batch.shape)}, expected contiguous "
            f"torch.int64 {_shape(columns)}; convert it"
        )
    return batch


def to_device(kv: KVBlocks, batch: torch.Tensor) -> torch.Tensor:
    """Sends a batch to the cache's device without waiting for it."""
    if batch.device == kv.device:
        return batch
    if batch.device.type != "cpu":
        raise KernelError(
            f"a batch of blocks is on {batch.device}, expected {kv.device} or the host; move it"
        )
    return batch.pin_memory().to(kv.device, non_blocking=True)


def check_blocks(kv: KVBlocks, blocks: list[int]) -> None:
    for block in blocks:
        if not 0 <= block < kv.num_blocks:
            raise KernelError(
                f"block id {block} is out of range, expected 0 to {kv.num_blocks - 1}; "
                "pass ids of this cache"
            )


def check_distinct(blocks: list[int], name: str) -> None:
    if len(set(blocks)) != len(blocks):
        twice = next(block for block in blocks if blocks.count(block) > 1)
        raise KernelError(f"{name} holds block {twice} twice, expected distinct blocks")


def check_copies(kv: KVBlocks, rows: list[list[int]]) -> None:
    sources, destinations = [row[0] for row in rows], [row[1] for row in rows]
    check_blocks(kv, sources + destinations)
    check_distinct(destinations, "the destinations of copies")
    if both := set(sources) & set(destinations):
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


def check_staging(kv: KVBlocks, staging: torch.Tensor, num_rows: int) -> None:
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


def _shape(columns: tuple[int, ...]) -> str:
    return f"[n{''.join(f', {size}' for size in columns)}]"
