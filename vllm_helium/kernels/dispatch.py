"""Which backend serves a device, and why: CUDA library, then Triton, then plain torch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch

from helium.errors import KernelError
from vllm_helium.kernels import reference
from vllm_helium.kernels.cuda_library import LIBRARY_PATH, CudaLibrary


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
        name: ``"cuda"``, ``"triton"`` or ``"reference"``.
        backend: The operations.
        reason: Why this one, in a clause for a log line.
    """

    name: str
    backend: BlockMoveBackend
    reason: str


@cache
def choose_backend(device_type: str) -> Choice:
    """Returns the best backend for a device type, decided once per process."""
    if device_type != "cuda":
        return Choice("reference", reference, f"plain torch is what serves {device_type} tensors")
    try:
        library = load_backend("cuda")
    except KernelError as missing_library:
        try:
            kernels = load_backend("triton")
        except KernelError as missing_triton:
            return Choice("reference", reference, f"{missing_library}; {missing_triton}")
        return Choice("triton", kernels, str(missing_library))
    return Choice("cuda", library, f"found {LIBRARY_PATH.name}")


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
    if name == "cuda":
        if not LIBRARY_PATH.exists():
            raise KernelError(
                f"{LIBRARY_PATH.name} is not beside the compiled core; build with HELIUM_CUDA=ON"
            )
        return CudaLibrary()
    raise KernelError(f"backend {name!r} is unknown; available: ['cuda', 'triton', 'reference']")


def describe(device_type: str | None = None) -> str:
    """Says in one line which backend moves blocks, and why.

    Args:
        device_type: ``"cuda"`` or ``"cpu"``; by default what this machine has.
    """
    device_type = device_type or ("cuda" if torch.cuda.is_available() else "cpu")
    choice = choose_backend(device_type)
    return f"block moves on {device_type}: {choice.name} ({choice.reason})"
