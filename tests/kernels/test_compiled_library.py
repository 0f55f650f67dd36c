"""The CUDA sources compile for every architecture we ship, and the loader refuses a wrong build."""

from __future__ import annotations

import _ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from helium.errors import KernelError
from tests.kernels.caches import make_cache
from vllm_helium.kernels.compiled_library import INTERFACE_VERSION, CompiledLibrary

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = (80, 90, 100)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sources_compile_to_16_byte_accesses_without_spills(architecture, tmp_path):
    source = ROOT / "csrc" / "cuda" / "block_moves.cu"
    command = ["nvcc", "-std=c++17", "-O3", f"-I{ROOT / 'csrc' / 'include'}", str(source)]
    command += ["-Werror=all-warnings", "-Xptxas", "--warn-on-spills", "--keep", "-cubin"]
    target = ["-arch", f"sm_{architecture}", "-o", "block_moves.cubin"]
    built = subprocess.run([*command, *target], cwd=tmp_path, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    output = tmp_path / "block_moves.ptx"
    widest = [kernel for kernel in output.read_text().split(".entry") if "Bytes16" in kernel[:80]]
    assert len(widest) == 3, "one kernel per operation"
    for kernel in widest:
        # Table reads may be wide too, so it is the stores that tell.
        stores = set(re.findall(r"st\.global\S*", kernel))
        assert stores and all(".v2.b64" in store or ".v2.u64" in store for store in stores)


def test_the_loader_and_the_library_agree_on_a_version(cpu_library):
    assert CompiledLibrary(cpu_library)._library.helium_block_moves_version() == INTERFACE_VERSION


def test_a_library_of_another_version_is_refused(host_library, monkeypatch):
    monkeypatch.setattr("vllm_helium.kernels.compiled_library.INTERFACE_VERSION", 99)
    with pytest.raises(KernelError, match="version 1, expected 99; rebuild"):
        CompiledLibrary(host_library)


def test_a_file_that_is_no_library_is_refused(tmp_path):
    path = tmp_path / "helium_cuda.so"
    path.write_bytes(b"not a library")
    with pytest.raises(KernelError, match=r"cannot load block moves from helium_cuda.so"):
        CompiledLibrary(path)


def test_a_library_without_the_operations_is_refused():
    with pytest.raises(KernelError, match="cannot load block moves"):
        CompiledLibrary(Path(_ctypes.__file__))


def test_an_unknown_alignment_is_reported_with_its_reason(host_library):
    kv = make_cache().describe()
    with pytest.raises(KernelError, match="alignment is none of 1, 2, 4, 8 and 16"):
        CompiledLibrary(host_library).gather_blocks(
            kv.storage, kv.blocks.rows, torch.tensor([0]), kv.empty_staging(1), kv.num_blocks, 3, 1
        )
