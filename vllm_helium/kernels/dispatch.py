"""Which backend serves a device, and why: compiled library, then Triton, then plain torch."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch

from helium.errors import KernelError
from vllm_helium.kernels import reference
from vllm_helium.kernels.compiled_library import CPU_LIBRARY, CUDA_LIBRARY, CompiledLibrary

BACKENDS = ("cuda", "triton", "cpu", "reference")
"""In C++ on a GPU, in Triton, in C++ on the CPU, in plain torch on either."""


class BlockMoveBackend(Protocol):
    """The three operations, as `reference` documents them.

    Arguments are checked by the caller. Ids in device memory are not known on the host; those
    outside the cache move nothing.
    """

    def gather_blocks(
        self,
        storage: torch.Tensor,
        runs: torch.Tensor,
        block_ids: torch.Tensor,
        staging: torch.Tensor,
        num_blocks: int,
        alignment: int,
        max_programs: int,
        /,
    ) -> None: ...

    def scatter_blocks(
        self,
        storage: torch.Tensor,
        runs: torch.Tensor,
        block_ids: torch.Tensor,
        staging: torch.Tensor,
        num_blocks: int,
        alignment: int,
        max_programs: int,
        /,
    ) -> None: ...

    def copy_block_prefix(
        self,
        storage: torch.Tensor,
        runs: torch.Tensor,
        copies: torch.Tensor,
        num_blocks: int,
        alignment: int,
        max_programs: int,
        /,
    ) -> None: ...


@dataclass(frozen=True)
class Choice:
    """A backend for one kind of device.

    Attributes:
        name: One of `BACKENDS`.
        backend: The operations.
        reason: Why this one, in a clause for a log line.
    """

    name: str
    backend: BlockMoveBackend
    reason: str


def choose_backend(device_type: str) -> Choice:
    """Returns the backend for a device type: `use_backend`'s, or else the best one there is."""
    return _chosen.get(device_type) or _best_backend(device_type)


@contextmanager
def use_backend(device_type: str, name: str) -> Iterator[None]:
    """Makes one backend serve a device type for a while, to compare backends. Not thread-safe.

    Raises:
        KernelError: It is not installed, or not known.
    """
    before = _chosen.get(device_type)
    _chosen[device_type] = Choice(name, load_backend(name), "chosen by the caller")
    try:
        yield
    finally:
        if before is None:
            del _chosen[device_type]
        else:
            _chosen[device_type] = before


_chosen: dict[str, Choice] = {}


@cache
def _best_backend(device_type: str) -> Choice:
    missing = []
    for name in ("cuda", "triton") if device_type == "cuda" else ("cpu",):
        try:
            backend = load_backend(name)
        except KernelError as error:
            missing.append(str(error))
        else:
            return Choice(name, backend, "; ".join(missing) or f"{name} is the first choice")
    return Choice("reference", reference, "; ".join(missing))


def load_backend(name: str) -> BlockMoveBackend:
    """Returns one backend by name, whatever the dispatcher would choose.

    Raises:
        KernelError: It is not installed, or not known.
    """
    if name == "reference":
        return reference
    if name == "triton":
        try:
            return importlib.import_module("vllm_helium.kernels.triton_kernels")
        except ImportError as error:
            raise KernelError(f"cannot import Triton: {error}; install triton") from error
    if name in ("cuda", "cpu"):
        path = CUDA_LIBRARY if name == "cuda" else CPU_LIBRARY
        if not path.exists():
            raise KernelError(f"{path.name} is not in {path.parent.name}; build it")
        return CompiledLibrary(path)
    raise KernelError(f"backend {name!r} is unknown; available: {list(BACKENDS)}")


def describe(device_type: str | None = None) -> str:
    """Says in one line which backend moves blocks, and why.

    Args:
        device_type: ``"cuda"`` or ``"cpu"``; by default what this machine has.
    """
    device_type = device_type or ("cuda" if torch.cuda.is_available() else "cpu")
    choice = choose_backend(device_type)
    return f"block moves on {device_type}: {choice.name} ({choice.reason})"
