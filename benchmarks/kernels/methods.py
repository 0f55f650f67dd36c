"""What the block-move benchmark compares, for one case: our backends and the baselines."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.kernels.memcpy_batch import MemcpyBatch
from helium.errors import KernelError
from vllm_helium.kernels import KVBlocks, copy_block_prefix, gather_blocks
from vllm_helium.kernels.dispatch import load_backend
from vllm_helium.kernels.mover import BlockMover, empty_host_blocks

BLOCK_SIZE = 16
MOVES = ("store", "load", "stage", "copy")
OUR_BACKENDS = {"cuda": ("cuda", "triton"), "cpu": ("cpu", "reference")}


@dataclass(frozen=True)
class Case:
    """One point of the benchmark.

    Attributes:
        move: ``store`` to host memory, ``load`` back, ``stage`` into memory on the cache's device,
            or ``copy`` whole blocks to other blocks.
        num_blocks: Blocks moved at once, scattered over the cache.
        block_bytes: Bytes of a block in one layer.
        num_layers: Layers, each with its own part of the cache.
    """

    move: str
    num_blocks: int
    block_bytes: int
    num_layers: int

    @property
    def num_bytes(self) -> int:
        return self.num_blocks * self.block_bytes * self.num_layers


@dataclass(frozen=True)
class Method:
    """A way to do a case.

    Attributes:
        name: For the report.
        run: Queues the move on the current stream.
        backend: Which of ours must serve while it runs, if any.
        check: Whether the moved bytes are right, after ``run``; ``None`` for methods that move
            other bytes, as a plain copy does.
    """

    name: str
    run: Callable[[], object]
    backend: str | None = None
    check: Callable[[], bool] | None = None


class Setup:
    """Memory and blocks of one case, and its methods."""

    def __init__(self, case: Case, device: str) -> None:
        self.case, self.device = case, device
        layers, blocks, width = case.num_layers, case.num_blocks, case.block_bytes
        shape = (layers, 2 * blocks, width)
        self.cache = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        views = [layer.view(2 * blocks, 1, BLOCK_SIZE, width // BLOCK_SIZE) for layer in self.cache]
        self.kv = KVBlocks.from_views(views, 2 * blocks, BLOCK_SIZE, token_addressable=True)
        ids = random.Random(0).sample(range(2 * blocks), 2 * blocks)
        self.blocks, self.others = ids[:blocks], ids[blocks:]
        self.ids = torch.tensor(self.blocks, device=device)
        self.other_ids = torch.tensor(self.others, device=device)
        self.staging = self.kv.empty_staging(blocks)
        self.rows = list(range(blocks))
        if case.move in ("store", "load"):
            self.host = empty_host_blocks(self.kv, blocks)
            self.host.copy_(torch.randint(0, 256, (width,), dtype=torch.uint8).repeat(layers))
        self.skipped: dict[str, str] = {}

    def methods(self) -> list[Method]:
        """Returns what can run here; what cannot is in ``skipped`` with its reason."""
        build = {
            "store": self._transfers,
            "load": self._transfers,
            "stage": self._stages,
            "copy": self._copies,
        }[self.case.move]
        return build()

    def _ours(self) -> list[str]:
        names = []
        for name in OUR_BACKENDS[self.device]:
            try:
                load_backend(name)
                names.append(name)
            except KernelError as error:
                self.skipped[name] = str(error)
        return names

    def _transfers(self) -> list[Method]:
        storing = self.case.move == "store"
        check = self._host_equals_cache
        methods = []
        paths = ("staged", "mapped") if self.device == "cuda" else ("mapped",)
        for backend in self._ours():
            for path in paths:
                mover = BlockMover(self.kv, path=path)
                run = partial(self._move_with, mover)
                name = f"ours_{backend}_{path}" if self.device == "cuda" else f"ours_{backend}"
                methods.append(Method(name, run, backend, check))
        source, target = (self.staging, self.host) if storing else (self.host, self.staging)
        plain = partial(target.copy_, source, non_blocking=True)
        methods += [Method("plain_copy", plain), Method("plain_copy_again", plain)]
        methods.append(
            Method("torch_per_layer", self._store_torch if storing else self._load_torch)
        )
        if self.device == "cuda":
            methods += self._batched_copies(storing, check)
        return methods

    def _batched_copies(self, storing: bool, check: Callable[[], bool]) -> list[Method]:
        width = self.case.block_bytes
        cached = [layer[block].data_ptr() for block in self.blocks for layer in self.cache]
        hosted = [self.host.data_ptr() + piece * width for piece in range(len(cached))]
        source, target = (cached, hosted) if storing else (hosted, cached)
        methods = []
        try:
            methods.append(Method("memcpy_batch", MemcpyBatch(target, source, width), check=check))
        except (OSError, AttributeError) as error:
            self.skipped["memcpy_batch"] = str(error)
        try:
            from vllm import _custom_ops
        except ImportError as error:
            self.skipped["swap_blocks_batch"] = f"vLLM is not installed: {error}"
            return methods
        # Python trees without vLLM's compiled files import, and fail at the first call.
        if not hasattr(torch.ops._C_cache_ops, "swap_blocks_batch"):
            self.skipped["swap_blocks_batch"] = "vLLM's compiled operators are not here"
        else:
            arguments = [torch.tensor(numbers) for numbers in (source, target)]
            sizes = torch.full((len(source),), width)
            run = partial(_custom_ops.swap_blocks_batch, *arguments, sizes)
            methods.append(Method("swap_blocks_batch", run, check=check))
        return methods

    def _stages(self) -> list[Method]:
        run = partial(gather_blocks, self.kv, self.ids, self.staging)
        methods = [Method(f"ours_{name}", run, name, self._staged) for name in self._ours()]
        other = torch.empty_like(self.staging)
        plain = partial(other.copy_, self.staging)
        methods += [Method("plain_copy", plain), Method("plain_copy_again", plain)]
        return [*methods, Method("torch_per_layer", self._stage_torch)]

    def _copies(self) -> list[Method]:
        copies = [self.ids, self.other_ids, torch.full_like(self.ids, BLOCK_SIZE)]
        run = partial(copy_block_prefix, self.kv, torch.stack(copies, 1).contiguous())
        methods = [Method(f"ours_{name}", run, name, self._copied) for name in self._ours()]
        plain = partial(self.staging.copy_, torch.empty_like(self.staging))
        methods += [Method("plain_copy", plain), Method("plain_copy_again", plain)]
        return [*methods, Method("torch_per_layer", self._copy_torch, check=self._copied)]

    def spoil(self) -> None:
        """Overwrites what the case writes, so that a check sees what a method did."""
        if self.case.move == "store":
            self.host.fill_(0xA5)
        elif self.case.move == "stage":
            self.staging.fill_(0xA5)
        else:
            written = self.blocks if self.case.move == "load" else self.others
            self.cache[:, written] = 0xA5

    def _move_with(self, mover: BlockMover) -> None:
        if self.case.move == "store":
            mover.store(self.blocks, self.host, self.rows).wait_on()
        else:
            mover.load(self.host, self.rows, self.blocks).wait_on()

    # Without batched copies: an indexed read or write and a temporary per layer, as upstream copies
    # blocks within a device. Torch indexes element by element, so the elements are its widest.
    def _store_torch(self) -> None:
        for layer, target in self._layers_and(self.host):
            target.copy_(layer[self.ids], non_blocking=True)

    def _load_torch(self) -> None:
        for layer, source in self._layers_and(self.host):
            layer[self.ids] = source.to(self.device, non_blocking=True)

    def _stage_torch(self) -> None:
        for layer, target in self._layers_and(self.staging):
            target.copy_(layer[self.ids])

    def _copy_torch(self) -> None:
        for layer in self.cache.view(torch.int64):
            layer[self.other_ids] = layer[self.ids]

    def _layers_and(self, memory: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        case = self.case
        by_layer = memory.view(case.num_layers, case.num_blocks, case.block_bytes)
        return zip(self.cache.view(torch.int64), by_layer.view(torch.int64), strict=True)

    def _host_equals_cache(self) -> bool:
        return torch.equal(self.host.to(self.device), self._wanted())

    def _staged(self) -> bool:
        return torch.equal(self.staging, self._wanted())

    def _wanted(self) -> torch.Tensor:
        return self.cache[:, self.ids].transpose(0, 1).reshape(self.case.num_blocks, -1)

    def _copied(self) -> bool:
        return torch.equal(self.cache[:, self.ids], self.cache[:, self.other_ids])
