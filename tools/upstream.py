"""The pinned upstream: which wheel, where it is kept, what its files must hash to.

``patches/UPSTREAM.toml`` is the only place that names an upstream version. The wheel is fetched
with pip, so it comes from whatever index the user has configured, and is kept in the user's cache.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
PATCHES = REPO / "patches"
DEVICES = ("cpu", "cuda")


class UpstreamError(Exception):
    """The upstream wheel or tree is not what ``UPSTREAM.toml`` pins."""


@dataclass(frozen=True)
class Wheel:
    """One upstream wheel: ``distribution==version`` and the exact file expected."""

    distribution: str
    version: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Upstream:
    """The content of ``UPSTREAM.toml``.

    Attributes:
        files: SHA-256 of each patched file in the pristine tree, by path from the wheel's root.
    """

    version: str
    wheels: dict[str, Wheel]
    files: dict[str, str]


def load_upstream(path: Path = PATCHES / "UPSTREAM.toml") -> Upstream:
    """Reads the pin file."""
    raw = tomllib.loads(path.read_text())
    version = raw["version"]
    wheels = {
        device: Wheel(entry["distribution"], version, entry["file"], entry["sha256"])
        for device, entry in raw["wheel"].items()
    }
    return Upstream(version, wheels, dict(sorted(raw.get("files", {}).items())))


def cache_dir() -> Path:
    """Where upstream wheels are kept: ``$XDG_CACHE_HOME/vllm-helium/wheels``."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "vllm-helium" / "wheels"


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_wheel(wheel: Wheel) -> Path:
    """Returns the path of a verified local copy, downloading it at most once.

    Raises:
        UpstreamError: The wheel cannot be had, or its hash is not the pinned one.
    """
    local = cache_dir() / wheel.file
    if not local.exists():
        local = download_wheel(wheel.distribution, wheel.version)
    found = sha256_of(local)
    if found != wheel.sha256:
        raise UpstreamError(
            f"{local}: sha256 is {found}, UPSTREAM.toml pins {wheel.sha256}; delete the file and "
            "try again, or check that the index serves the release that was pinned"
        )
    return local


def download_wheel(distribution: str, version: str) -> Path:
    """Downloads ``distribution==version`` without its requirements and returns its path."""
    target = cache_dir()
    target.mkdir(parents=True, exist_ok=True)
    stem = f"{distribution.replace('-', '_')}-{version}-"
    if not any(target.glob(f"{stem}*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", str(target), f"{distribution}=={version}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UpstreamError(
                f"pip could not download {distribution}=={version}: {done.stderr.strip()[-600:]}"
            )
    found = sorted(target.glob(f"{stem}*.whl"))
    if not found:
        raise UpstreamError(f"pip downloaded no wheel named {stem}*.whl into {target}")
    return found[0]


def unpack_wheel(wheel: Path, target: Path, *, python_only: bool = False) -> None:
    """Unpacks a wheel; with ``python_only`` just its ``.py`` files."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not python_only or name.endswith(".py"):
                archive.extract(name, target)
