"""The block moves in C++, from libraries with a C interface that know nothing of torch.

Two libraries have the interface: ``helium_cuda`` launches kernels on the current stream, and the
compiled core copies on the calling thread. Each method equals the function of the same name in
`reference`, bit for bit. Launches on a GPU neither read device memory on the host nor allocate, so
they can be captured in a CUDA graph. Sources: csrc/include/helium/block_moves_api.h,
csrc/cuda/block_moves.cu, csrc/block_moves_cpu.cpp.
"""

from __future__ import annotations

import ctypes
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

from helium.errors import KernelError

_PACKAGE = Path(__file__).resolve().parent.parent

CUDA_LIBRARY = _PACKAGE / "helium_cuda.so"
"""Where a build with the CMake option ``HELIUM_CUDA`` belongs: beside the compiled core."""

CPU_LIBRARY = _PACKAGE / f"_core{EXTENSION_SUFFIXES[0]}"
"""The compiled core itself."""

INTERFACE_VERSION = 1

_POINTER, _INT64, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_CACHE = [_POINTER, _POINTER, _INT64]
_LAUNCH = [_INT, _INT64, _POINTER]
_STAGED = [*_CACHE, _POINTER, _INT64, _INT64, _POINTER, _INT64, *_LAUNCH]
_SIGNATURES = {
    "helium_gather_blocks": _STAGED,
    "helium_scatter_blocks": _STAGED,
    "helium_copy_block_prefix": [*_CACHE, _POINTER, _INT64, _INT64, *_LAUNCH],
}


class CompiledLibrary:
    """The launchers of one shared library.

    Args:
        path: `CUDA_LIBRARY`, `CPU_LIBRARY` or another with their interface.

    Raises:
        KernelError: The library does not load, or was built for another interface.
    """

    def __init__(self, path: Path) -> None:
        try:
            library = ctypes.CDLL(str(path.absolute()))
            version = library.helium_block_moves_version()
            for name, arguments in _SIGNATURES.items():
                function = getattr(library, name)
                function.argtypes, function.restype = arguments, _INT
            library.helium_error_string.argtypes = [_INT]
            library.helium_error_string.restype = ctypes.c_char_p
        except (OSError, AttributeError) as error:
            raise KernelError(
                f"cannot load block moves from {path.name}: {error}; rebuild it"
            ) from error
        if version != INTERFACE_VERSION:
            raise KernelError(
                f"{path.name} has block moves of version {version}, expected {INTERFACE_VERSION}; "
                "rebuild it"
            )
        self._library = library

    def gather_blocks(
        self,
        storage: torch.Tensor,
        runs: torch.Tensor,
        block_ids: torch.Tensor,
        staging: torch.Tensor,
        num_blocks: int,
        alignment: int,
        max_programs: int,
    ) -> None:
        """As `reference.gather_blocks`; ``staging`` may be pinned host memory."""
        self._launch(
            "helium_gather_blocks",
            storage,
            runs,
            block_ids,
            num_blocks,
            (staging.data_ptr(), staging.stride(0)),
            alignment,
            max_programs,
        )

    def scatter_blocks(
        self,
        storage: torch.Tensor,
        runs: torch.Tensor,
        block_ids: torch.Tensor,
        staging: torch.Tensor,
        num_blocks: int,
        alignment: int,
        max_programs: int,
    ) -> None:
        """As `reference.scatter_blocks`; ``staging`` may be pinned host memory."""
        self._launch(
            "helium_scatter_blocks",
            storage,
            runs,
            block_ids,
            num_blocks,
            (staging.data_ptr(), staging.stride(0)),
            alignment,
            max_programs,
        )

    def copy_block_prefix(
        self,
        storage: torch.Tensor,
        runs: torch.Tensor,
        copies: torch.Tensor,
        num_blocks: int,
        alignment: int,
        max_programs: int,
    ) -> None:
        """As `reference.copy_block_prefix`."""
        self._launch(
            "helium_copy_block_prefix",
            storage,
            runs,
            copies,
            num_blocks,
            (),
            alignment,
            max_programs,
        )

    def _launch(
        self,
        name: str,
        storage: torch.Tensor,
        runs: torch.Tensor,
        batch: torch.Tensor,
        num_blocks: int,
        staging: tuple[int, ...],
        alignment: int,
        max_programs: int,
    ) -> None:
        arguments = (
            storage.data_ptr(),
            runs.data_ptr(),
            len(runs),
            batch.data_ptr(),
            len(batch),
            num_blocks,
            *staging,
            alignment,
            max_programs,
        )
        if storage.is_cuda:
            # The library's own runtime takes the device from the driver's current context.
            with torch.cuda.device(storage.device):
                stream = torch.cuda.current_stream(storage.device).cuda_stream
                status = getattr(self._library, name)(*arguments, stream)
        else:
            status = getattr(self._library, name)(*arguments, None)
        if status:
            reason = self._library.helium_error_string(status).decode()
            raise KernelError(
                f"{name} failed with code {status}: {reason}; "
                f"got {len(batch)} rows, {len(runs)} runs, alignment {alignment}"
            )
