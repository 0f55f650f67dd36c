"""Every backend that can run on this machine, without a GPU or with one."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from helium.errors import KernelError
from vllm_helium.kernels import dispatch, reference
from vllm_helium.kernels.compiled_library import CompiledLibrary

ROOT = Path(__file__).resolve().parents[2]
HOST_BACKENDS = ("reference", "cpu", "kernel_loops", "interpreted_triton")
GPU_BACKENDS = ("reference", "triton", "cuda")


@pytest.fixture(scope="session")
def interpreted_triton():
    """The Triton kernels under the interpreter, as a module of their own.

    ``triton.jit`` reads the environment when it decorates, so a second copy of the module, loaded
    with the variable set, is interpreted while the real one stays compiled.
    """
    pytest.importorskip("triton", reason="Triton is not installed")
    path = ROOT / "vllm_helium" / "kernels" / "triton_kernels.py"
    spec = importlib.util.spec_from_file_location("interpreted_triton_kernels", path)
    module = importlib.util.module_from_spec(spec)
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        spec.loader.exec_module(module)
    finally:
        if before is None:
            del os.environ["TRITON_INTERPRET"]
        else:
            os.environ["TRITON_INTERPRET"] = before
    return module


def compile_library(source: Path, folder: Path) -> Path:
    """Compiles a library of block moves for the host, with undefined-behaviour checks if it can."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    command = [compiler, "-std=c++17", "-O1", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror"]
    command += ["-shared", "-fPIC", "-fvisibility=hidden", f"-I{ROOT / 'csrc' / 'include'}"]
    library = folder / f"{source.stem}.so"
    checks = ["-fsanitize=undefined", "-fno-sanitize-recover=all", "-static-libubsan"]
    checked = subprocess.run([*command, *checks, str(source), "-o", str(library)])
    if checked.returncode:  # no sanitizer library on this machine
        subprocess.run([*command, str(source), "-o", str(library)], check=True)
    return library


@pytest.fixture(scope="session")
def host_library(tmp_path_factory) -> Path:
    """The CUDA kernels' loops, run on the host program by program and thread by thread."""
    source = ROOT / "tests" / "kernels" / "block_moves_host.cpp"
    return compile_library(source, tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="session")
def cpu_library(tmp_path_factory) -> Path:
    """The compiled core's block moves, without the rest of it."""
    return compile_library(ROOT / "csrc" / "block_moves_cpu.cpp", tmp_path_factory.mktemp("cpu"))


@pytest.fixture(
    params=[("cpu", name) for name in HOST_BACKENDS]
    + [pytest.param(("cuda", name), marks=pytest.mark.gpu) for name in GPU_BACKENDS],
    ids=lambda param: "-".join(param),
)
def backend(request):
    """A backend and the device its tensors live on."""
    device, name = request.param
    if device == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        choice = reference
        if name != "reference":
            try:
                choice = dispatch.load_backend(name)
            except KernelError as error:
                pytest.skip(str(error))
    elif name == "reference":
        choice = reference
    elif name in ("cpu", "kernel_loops"):
        fixture = {"cpu": "cpu_library", "kernel_loops": "host_library"}[name]
        choice = CompiledLibrary(request.getfixturevalue(fixture))
    else:
        choice = request.getfixturevalue("interpreted_triton")
    return choice, device
