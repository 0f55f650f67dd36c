"""Transfers between a KV cache and host memory, on a stream of their own.

The stream has the lowest priority, so that transfers yield to the model, and order is kept by
events alone: a transfer starts after the work already queued on the caller's stream, and the caller
waits for it on a stream or asks whether it is over. On the CPU a transfer is over when the call
returns.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch

from helium.errors import KernelError
from vllm_helium.kernels.block_moves import gather_blocks, scatter_blocks
from vllm_helium.kernels.kv_blocks import KVBlocks

STAGING_BYTES = 64 * 1024 * 1024
"""Device memory for staging: 1 ms of a 64 GB/s link, long beside the few microseconds of a copy."""

Path = Literal["staged", "mapped"]


@dataclass(frozen=True)
class Transfer:
    """A transfer on its way; both events are ``None`` where it was over at once.

    Attributes:
        event: When all bytes have arrived.
        read_event: When nothing more is read from the blocks, which may then be written: earlier
            than ``event`` for a staged store.
    """

    event: torch.cuda.Event | None
    read_event: torch.cuda.Event | None = None

    def done(self) -> bool:
        """Whether all bytes have arrived; never waits."""
        return self.event is None or self.event.query()

    def wait_on(self, stream: torch.cuda.Stream | None = None) -> None:
        """Makes later work on a stream, by default the current one, wait; the host does not."""
        if self.event is not None:
            self.event.wait(stream or torch.cuda.current_stream())

    def wait_until_read(self) -> None:
        """Makes later work on the current stream wait until a store's blocks may be written."""
        event = self.read_event or self.event
        if event is not None:
            event.wait(torch.cuda.current_stream())


class BlockMover:
    """Stores blocks to host rows and loads them back.

    Blocks that a store reads or a load writes stay the mover's until the transfer is done: they
    must be neither freed nor reused before. The same holds for host rows. Transfers of one mover
    run in the order they were asked for.

    Args:
        kv: The cache.
        path: ``"staged"`` gathers blocks into device memory and copies them as few long pieces;
            ``"mapped"`` lets the kernels read and write pinned host memory themselves. Staged is
            the default because a copy engine needs no multiprocessor; benchmarks/kernels measures
            both.
        staging_bytes: Device memory for the staged path; at least one block is staged.

    Raises:
        KernelError: ``path`` is unknown.
    """

    def __init__(
        self, kv: KVBlocks, *, path: Path = "staged", staging_bytes: int = STAGING_BYTES
    ) -> None:
        if path not in ("staged", "mapped"):
            raise KernelError(f"path is {path!r}, expected 'staged' or 'mapped'")
        self.kv = kv
        self._stream: torch.cuda.Stream | None = None
        self._staging: torch.Tensor | None = None
        if kv.device.type == "cuda":
            lowest, _ = torch.cuda.Stream.priority_range()
            self._stream = torch.cuda.Stream(kv.device, priority=lowest)
            if path == "staged":
                self._staging = kv.empty_staging(max(1, staging_bytes // kv.staged_block_bytes))

    def store(self, block_ids: Sequence[int], host: torch.Tensor, rows: Sequence[int]) -> Transfer:
        """Copies blocks to host memory.

        Args:
            block_ids: n blocks.
            host: uint8 [host blocks, kv.staged_block_bytes], pinned where the cache is on a GPU;
                written. See `empty_host_blocks`.
            rows: n rows of ``host``, distinct; block ``block_ids[i]`` goes to row ``rows[i]``.

        Raises:
            KernelError: An argument does not fit; nothing was queued.
        """
        return self._transfer(block_ids, host, rows, gather_blocks, to_host=True)

    def wait_for(self, transfer: Transfer) -> None:
        """Makes later transfers of this mover wait for one of another mover."""
        if self._stream is not None:
            transfer.wait_on(self._stream)

    def load(self, host: torch.Tensor, rows: Sequence[int], block_ids: Sequence[int]) -> Transfer:
        """Copies host rows back to blocks; arguments and errors as in `store`.

        Work that reads the blocks must wait for the transfer, by `Transfer.wait_on`.
        """
        return self._transfer(block_ids, host, rows, scatter_blocks, to_host=False)

    def _transfer(
        self,
        block_ids: Sequence[int],
        host: torch.Tensor,
        rows: Sequence[int],
        move: Callable[[KVBlocks, Sequence[int], torch.Tensor], None],
        to_host: bool,
    ) -> Transfer:
        self._check(block_ids, host, rows)
        read_event = None
        with self._after_current_stream():
            for first, last in self._chunks(rows):
                chunk = block_ids[first:last]
                if self._staging is None:
                    move(self.kv, chunk, host[rows[first] : rows[first] + last - first])
                    continue
                staged = self._staging[: last - first]
                if to_host:
                    move(self.kv, chunk, staged)
                    if self._stream is not None:
                        read_event = self._stream.record_event()
                for start, end in _consecutive(rows[first:last]):
                    row = rows[first + start]
                    pair = (host[row : row + end - start], staged[start:end])
                    target, source = pair if to_host else reversed(pair)
                    target.copy_(source, non_blocking=True)
                if not to_host:
                    move(self.kv, chunk, staged)
            event = None if self._stream is None else self._stream.record_event()
            return Transfer(event, read_event)

    def _chunks(self, rows: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Cuts a batch: to what staging holds, or without staging to consecutive host rows."""
        if self._staging is None:
            yield from _consecutive(rows)
            return
        step = len(self._staging)
        for first in range(0, len(rows), step):
            yield first, min(first + step, len(rows))

    def _after_current_stream(self):
        if self._stream is None:
            return nullcontext()
        self._stream.wait_stream(torch.cuda.current_stream(self.kv.device))
        return torch.cuda.stream(self._stream)

    def _check(self, block_ids: Sequence[int], host: torch.Tensor, rows: Sequence[int]) -> None:
        if len(block_ids) != len(rows):
            raise KernelError(
                f"{len(block_ids)} blocks for {len(rows)} host rows, expected as many of each"
            )
        width = self.kv.staged_block_bytes
        if host.dtype != torch.uint8 or host.ndim != 2 or host.shape[1] != width:
            raise KernelError(
                f"host memory is {host.dtype} {tuple(host.shape)}, expected torch.uint8 "
                f"[host blocks, {width}]; use empty_host_blocks"
            )
        pinned = self._stream is None or host.is_pinned()
        if host.device.type != "cpu" or not pinned or not host.is_contiguous():
            raise KernelError("host memory is not contiguous and pinned; use empty_host_blocks")
        checked = (("block_ids", block_ids, self.kv.num_blocks), ("rows", rows, len(host)))
        for name, numbers, bound in checked:
            outside = [number for number in numbers if not 0 <= number < bound]
            if outside or len(set(numbers)) != len(numbers):
                raise KernelError(
                    f"{name} are {list(numbers)[:8]}…, expected distinct numbers from 0 to "
                    f"{bound - 1}"
                )


def empty_host_blocks(kv: KVBlocks, num_blocks: int) -> torch.Tensor:
    """Returns uninitialised host memory for blocks, uint8 [num_blocks, kv.staged_block_bytes].

    Pinned where the cache is on a GPU, by registration: torch's allocator for pinned memory would
    round the size up to a power of two. Unpinned again when the memory is freed.

    Raises:
        KernelError: The driver refuses to pin that much.
    """
    memory = np.empty((num_blocks, kv.staged_block_bytes), dtype=np.uint8)
    host = torch.from_numpy(memory)
    if kv.device.type != "cuda" or host.nbytes == 0:
        return host
    runtime, address = torch.cuda.cudart(), host.data_ptr()
    status = int(runtime.cudaHostRegister(address, host.nbytes, 0))
    if status:
        raise KernelError(
            f"cannot pin {host.nbytes} bytes of host memory (code {status}); ask for fewer blocks"
        )
    # Every view of the tensor keeps the array, and the array tells of its end before it frees.
    weakref.finalize(memory, runtime.cudaHostUnregister, address)
    return host


def _consecutive(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cuts positions ``[0, len(rows))`` where the row is not the previous one plus one."""
    breaks = [at for at in range(1, len(rows)) if rows[at] != rows[at - 1] + 1]
    yield from pairwise([0, *breaks, len(rows)] if rows else [])
