"""Makes the archive that `run_workflows` runs from on a GPU machine without a network.

    python -m benchmarks.gpu.pack --output DIR [--python python3.12]
    mkdir kit && tar xzf DIR/gpu_kit.tar.gz -C kit
    python3 kit/benchmarks/gpu/run_workflows.py --output OUT

It holds vLLM's Python tree (the CUDA wheel's, patched, without compiled files), our packages, the
sources and tests of the kernels, the compiled core for the GPU machine's Python, and those of
vLLM's requirements that such a machine lacks. The archive says in ``kit.json`` what it holds. The
core is left out where no such Python is at hand; `run_workflows` then compiles it, or does without.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.gpu.kit import ROOT, revision
from benchmarks.gpu.plain_ops import COMPILED_MODULES

sys.path.insert(0, str(ROOT / "tools"))

from upstream import fetch_wheel, load_upstream, unpack_wheel

from patches import apply_stack, load_series

LIMIT_MIB = 60
NAME = "gpu_kit.tar.gz"

LEFT_OUT = (
    "vllm/vllm-rs",
    "vllm/third_party/deep_gemm/*",
    "vllm/third_party/fmha_sm100/*",
    "vllm/third_party/tml_fa4/*",
    "*.so",
    "*.pyc",
)
"""Of vLLM's tree: compiled files and the sources of kernels that a dense model does not use."""

OUR_TREES = ("helium", "vllm_helium", "benchmarks", "csrc", "tests/kernels")
OUR_FILES = ("CMakeLists.txt", "pyproject.toml", "LICENSE")

PACKAGES = (
    "annotated-types", "apache-tvm-ffi", "cachetools", "cbor2", "fastapi", "httpx2", "llguidance",
    "msgspec", "openai", "oss-harmony", "partial-json-parser", "pybase64", "pydantic",
    "pydantic-core", "pyzmq", "sniffio", "starlette", "typing-inspection", "xgrammar",
)  # fmt: skip
"""What ``from vllm import LLM`` imports and a machine with torch and transformers may lack."""

STUB = '''"""Stands in for a compiled file of vLLM's that this archive leaves out."""

from benchmarks.gpu.plain_ops import register

register("CUDA")
'''


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the archive."""
    options = _parser().parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu-kit-") as folder:
        kit = Path(folder) / "kit"
        manifest = build(kit, options)
        archive = options.output / NAME
        with tarfile.open(archive, "w:gz", compresslevel=9) as tar:
            for path in sorted(kit.iterdir()):
                tar.add(path, path.name)
    mib = archive.stat().st_size / 2**20
    print(json.dumps(manifest, indent=1))
    print(f"{archive}: {mib:.1f} MiB")
    if mib > LIMIT_MIB:
        print(f"larger than {LIMIT_MIB} MiB; leave more out", file=sys.stderr)
        return 1
    return 0


def build(kit: Path, options: argparse.Namespace) -> dict[str, object]:
    """Lays the archive out in a folder; returns its manifest."""
    lay_out_upstream(kit)
    for name in OUR_TREES:
        ignore = shutil.ignore_patterns("__pycache__", "*.pyc", "*.so", "results", ".hypothesis")
        shutil.copytree(ROOT / name, kit / name, ignore=ignore)
    for name in OUR_FILES:
        shutil.copy2(ROOT / name, kit / name)
    core, reason = build_core(kit, options.python)
    packages = [] if options.no_packages else fetch_packages(kit / "site", options.python_version)
    manifest: dict[str, object] = {
        "revision": revision(),
        "upstream": load_upstream().version,
        "core": core,
        "core_missing_because": reason,
        "packages": packages,
    }
    (kit / "kit.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def lay_out_upstream(kit: Path) -> None:
    """Unpacks and patches vLLM's tree, and puts stand-ins where compiled files are imported."""
    upstream = load_upstream()
    unpack_wheel(fetch_wheel(upstream.wheels["cuda"]), kit)
    apply_stack(kit, load_series(), upstream.files)
    for path in sorted(kit.rglob("*"), reverse=True):
        if path.is_file() and _is_left_out(path.relative_to(kit).as_posix()):
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    # Files and not only `install`: vLLM looks at models in processes of its own.
    for name in COMPILED_MODULES:
        kit.joinpath(*name.split(".")).with_suffix(".py").write_text(STUB)
    _rename_distribution(kit, f"{upstream.version}+helium.kit.cu13")


def build_core(kit: Path, python: str | None) -> tuple[str | None, str | None]:
    """Compiles the core for another Python; returns its file's name, or why there is none."""
    interpreter = python or _find_python("3.12")
    if interpreter is None:
        return None, "no python3.12 was found; name one with --python"
    with tempfile.TemporaryDirectory(prefix="gpu-kit-core-") as folder:
        # nanobind is sources and CMake files, the same for every Python.
        nanobind = Path(folder) / "nanobind"
        build = Path(folder) / "build"
        environment = {**os.environ, "PYTHONPATH": str(nanobind)}
        configure = ["cmake", "-S", str(kit), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release"]
        commands = [
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target",
             str(nanobind), "nanobind>=2.9"],
            [*configure, f"-DPython_EXECUTABLE={interpreter}"],
            ["cmake", "--build", str(build), "-j", str(os.cpu_count() or 1)],
        ]  # fmt: skip
        for command in commands:
            try:
                done = subprocess.run(command, env=environment, capture_output=True, text=True)
            except OSError as error:
                return None, str(error)
            if done.returncode:
                return None, f"{command[0]} failed: {(done.stderr or done.stdout)[-500:]}"
        [library] = build.glob("_core*.so")
        shutil.copy2(library, kit / "vllm_helium" / library.name)
        return library.name, None


def fetch_packages(site: Path, python_version: str) -> list[str]:
    """Unpacks the wheels of ``PACKAGES``, for another Python; returns names with versions."""
    abi = f"cp{python_version.replace('.', '')}"
    requirements = [*_upstream_requirements(PACKAGES), *PACKAGES]
    # pip matches platform names exactly; 2.39 is what Ubuntu 24.04 has.
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python_version]
    command += ["--abi", abi, "--abi", "abi3", "--abi", "none", "--target", str(site)]
    for platform in [*platforms, "manylinux2014_x86_64", "manylinux1_x86_64"]:
        command += ["--platform", platform]
    subprocess.run([*command, *requirements], check=True)
    shutil.rmtree(site / "bin", ignore_errors=True)
    return sorted(info.name.removesuffix(".dist-info") for info in site.glob("*.dist-info"))


def _upstream_requirements(names: Iterable[str]) -> list[str]:
    """Returns vLLM's own bounds on some packages, and pydantic-core as pydantic wants it."""
    from email.parser import HeaderParser
    from importlib.metadata import requires, version
    from zipfile import ZipFile

    from packaging.requirements import Requirement

    wanted = set(names)
    with ZipFile(fetch_wheel(load_upstream().wheels["cuda"])) as archive:
        [name] = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    lines = [*(metadata.get_all("Requires-Dist") or ())]
    found = []
    for requirement in map(Requirement, lines):
        if requirement.name in wanted and "extra" not in str(requirement.marker or ""):
            found.append(f"{requirement.name}{requirement.specifier}")
    found.append(f"pydantic=={version('pydantic')}")
    found += [
        f"{requirement.name}{requirement.specifier}"
        for requirement in map(Requirement, requires("pydantic") or ())
        if requirement.name == "pydantic-core"
    ]
    return found


def _find_python(version: str) -> str | None:
    found = shutil.which(f"python{version}")
    if found and not subprocess.run([found, "--version"], capture_output=True).returncode:
        return found
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    candidates = sorted(root.glob(f"{version}.*/bin/python{version}"))
    return str(candidates[-1]) if candidates else None


def _is_left_out(path: str) -> bool:
    return any(fnmatch.fnmatch(path, pattern) for pattern in LEFT_OUT)


def _rename_distribution(kit: Path, version: str) -> None:
    """Gives vLLM's metadata our version, which its platform detection reads."""
    [info] = kit.glob("vllm-*.dist-info")
    target = kit / f"vllm-{version}.dist-info"
    target.mkdir()
    metadata = (info / "METADATA").read_text()
    head, _, rest = metadata.partition("\nVersion: ")
    (target / "METADATA").write_text(f"{head}\nVersion: {version}\n{rest.partition(chr(10))[2]}")
    shutil.copy2(info / "entry_points.txt", target / "entry_points.txt")
    for license_file in (info / "licenses").glob("*"):
        shutil.copy2(license_file, target / license_file.name)
    shutil.rmtree(info)
    parts = tuple(int(part) for part in version.partition("+")[0].split("."))
    (kit / "vllm" / "_version.py").write_text(
        f"__version__ = version = {version!r}\n"
        f"__version_tuple__ = version_tuple = {(*parts, version.partition('+')[2])!r}\n"
        "__commit_id__ = commit_id = None\n"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.pack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder of the archive")
    add("--python", help="interpreter of the GPU machine's version, to compile the core for")
    add("--python-version", default="3.12", help="of the GPU machine")
    add("--no-packages", action="store_true", help="leave vLLM's requirements out")
    return parser


if __name__ == "__main__":
    sys.exit(main())
