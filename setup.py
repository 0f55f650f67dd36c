"""Builds the engine wheel: the pinned upstream wheel + the patch stack + our packages.

The distribution is named ``vllm`` with a local version, because upstream asks the installed
metadata for that name and reads the platform from the version. ``HELIUM_TARGET_DEVICE`` chooses the
upstream wheel: ``cpu`` or ``cuda``; the default is what this machine has.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import HeaderParser
from pathlib import Path
from typing import ClassVar

from packaging.requirements import Requirement
from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

REPO = Path(__file__).resolve().parent
sys.path.insert(0, str(REPO / "tools"))

from upstream import DEVICES, fetch_wheel, load_upstream, unpack_wheel  # noqa: E402

from patches import apply_stack, load_series  # noqa: E402

HELIUM_VERSION = 1
OUR_PACKAGES = ("helium", "vllm_helium")
LOCAL_LABEL = {"cpu": "cpu", "cuda": "cu13"}
MEDIA_PACKAGES = ("torchvision", "torchaudio", "torchcodec")
DEMO_REQUIRES = ["gguf>=0.17"]
BENCH_REQUIRES = ["matplotlib>=3.8"]
RAY_REQUIRES = ["ray>=2.60"]
TEST_REQUIRES = [
    *("pytest>=8", "hypothesis>=6", "mypy>=1.15", "ruff>=0.11"),
    "ortools>=9.11",  # the exact optimum the planner is compared with
    # Draws requests from the routes' schema; another version draws others.
    "schemathesis==4.32.*",
    "accelerate",  # transformers' own GGUF loader, which the converted model is compared with
    *RAY_REQUIRES,
]
EDITABLE_PTH = "__editable__.vllm_helium.pth"


def target_device() -> str:
    """Reads ``HELIUM_TARGET_DEVICE``, or looks whether this machine has an NVIDIA driver."""
    chosen = os.environ.get("HELIUM_TARGET_DEVICE")
    if chosen is None:
        return "cuda" if shutil.which("nvidia-smi") else "cpu"
    if chosen not in DEVICES:
        raise SystemExit(
            f"HELIUM_TARGET_DEVICE is {chosen!r}; expected one of {', '.join(DEVICES)}"
        )
    return chosen


DEVICE = target_device()
UPSTREAM = load_upstream()
UPSTREAM_WHEEL = fetch_wheel(UPSTREAM.wheels[DEVICE])
VERSION = f"{UPSTREAM.version}+helium.{HELIUM_VERSION}.{LOCAL_LABEL[DEVICE]}"


def upstream_file(suffix: str) -> str:
    """Returns a file of the upstream wheel's ``.dist-info``."""
    with zipfile.ZipFile(UPSTREAM_WHEEL) as archive:
        [name] = [n for n in archive.namelist() if n.endswith(f".dist-info/{suffix}")]
        return archive.read(name).decode()


def requirements() -> tuple[list[str], dict[str, list[str]]]:
    """Upstream's requirements and extras; media packages become the extra ``media``."""
    metadata = HeaderParser().parsestr(upstream_file("METADATA"))
    required: list[str] = []
    extras: dict[str, list[str]] = {name: [] for name in metadata.get_all("Provides-Extra") or ()}
    extras |= {"media": [], "demo": DEMO_REQUIRES, "test": TEST_REQUIRES, "bench": BENCH_REQUIRES}
    extras["ray"] = RAY_REQUIRES
    for line in metadata.get_all("Requires-Dist") or ():
        requirement = Requirement(line)
        base, _, marker = line.partition("; extra == ")
        if marker:
            extras[marker.strip("\"'")].append(base)
        elif requirement.name in MEDIA_PACKAGES:
            extras["media"].append(line)
        elif " extra ==" in line:
            raise SystemExit(f"cannot read upstream's requirement {line!r}")
        else:
            required.append(line)
    return required, extras


def entry_points() -> str:
    """Upstream's entry points and the ``helium`` command."""
    ours = "helium = helium.cli.main:main"
    return upstream_file("entry_points.txt").replace(
        "[console_scripts]\n", f"[console_scripts]\n{ours}\n"
    )


class EngineDistribution(Distribution):
    """Has something to build although no package is listed: ``BuildTree`` lays it all out."""

    def has_pure_modules(self) -> bool:
        return True

    def has_ext_modules(self) -> bool:
        return True


class BuildTree(build_py):
    """Lays out upstream's patched tree, our packages and the extension under ``build_lib``."""

    def run(self) -> None:
        tree = Path(self.build_lib)
        shutil.rmtree(tree, ignore_errors=True)
        unpack_wheel(UPSTREAM_WHEEL, tree)
        for info in tree.glob("*.dist-info"):
            shutil.rmtree(info)
        apply_stack(tree, load_series(), UPSTREAM.files)
        write_version(tree / "vllm" / "_version.py")
        libraries = build_libraries()
        if self.editable_mode:
            for old in (REPO / "vllm_helium").glob("*.so"):
                old.unlink()
            for library in libraries:
                shutil.copy2(library, REPO / "vllm_helium")
            (tree / EDITABLE_PTH).write_text(f"{REPO}\n")
            return
        ignore = shutil.ignore_patterns("__pycache__", "*.pyc", "*.so")
        for name in OUR_PACKAGES:
            shutil.copytree(REPO / name, tree / name, ignore=ignore)
        for library in libraries:
            shutil.copy2(library, tree / "vllm_helium")
        (tree / "vllm_helium/UPSTREAM_LICENSE").write_text(upstream_file("licenses/LICENSE"))


def write_version(path: Path) -> None:
    """Replaces upstream's generated version module by ours."""
    parts = tuple(int(part) for part in UPSTREAM.version.split("."))
    path.write_text(
        '"""Generated by the build."""\n\n'
        f"__version__ = version = {VERSION!r}\n"
        f"__version_tuple__ = version_tuple = {(*parts, VERSION.partition('+')[2])!r}\n"
        "__commit_id__ = commit_id = None\n"
    )


def build_libraries() -> list[Path]:
    """Compiles ``vllm_helium._core``, and the CUDA kernels where they are asked for, with CMake."""
    folder = REPO / "build" / f"core-{sysconfig.get_config_var('SOABI')}"
    with_cuda = os.environ.get("HELIUM_BUILD_CUDA_KERNELS") == "1"
    configure = ["cmake", "-S", str(REPO), "-B", str(folder), "-G", "Ninja"]
    configure += ["-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={sys.executable}"]
    configure += [f"-DHELIUM_CUDA={'ON' if with_cuda else 'OFF'}"]
    # A build environment of pip's is new every time, so nothing it named may be remembered.
    (folder / "CMakeCache.txt").unlink(missing_ok=True)
    for old in folder.glob("*.so"):
        old.unlink()
    subprocess.run(configure, check=True)
    subprocess.run(["cmake", "--build", str(folder)], check=True)
    return sorted(folder.glob("*.so"))


class EditableWheel(Command):
    """PEP 660: the patched engine as a wheel, our packages through a path file."""

    user_options: ClassVar[list[tuple[str, str, str]]] = [
        ("dist-dir=", "d", "where to put the wheel"),
        ("dist-info-dir=", "I", "where metadata was prepared; not used"),
    ]

    def initialize_options(self) -> None:
        self.dist_dir = None
        self.dist_info_dir = None

    def finalize_options(self) -> None:
        self.dist_dir = self.dist_dir or "dist"

    def run(self) -> None:
        self.get_finalized_command("build_py").editable_mode = True
        wheel = self.get_finalized_command("bdist_wheel")
        wheel.dist_dir = self.dist_dir
        self.run_command("bdist_wheel")


class EngineWheel(bdist_wheel):
    """A wheel for this interpreter and platform."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
        return tag, tag, platform


install_requires, extras_require = requirements()
setup(
    name="vllm",
    distclass=EngineDistribution,
    version=VERSION,
    description="vLLM with workflow-aware serving: agentic workflows as query plans in the engine",
    long_description=(REPO / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=HeaderParser().parsestr(upstream_file("METADATA"))["Requires-Python"],
    packages=[],
    py_modules=[],
    install_requires=install_requires,
    extras_require=extras_require,
    entry_points=entry_points(),
    cmdclass={"build_py": BuildTree, "bdist_wheel": EngineWheel, "editable_wheel": EditableWheel},
)
