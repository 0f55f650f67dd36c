"""Upstream's own tests, fetched and laid out outside this repository.

The pinned source distribution comes through pip, is kept in the user's cache, and only its
``tests`` folder is unpacked. Nothing of it is ever copied here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

UPSTREAM_VERSION = "0.32.0"
SDIST_SHA256 = "d2c957d5eee3d0985012151315ddc62cbe0cd368fc96a5fc3510438d9dddf2ad"
METADATA_REQUIREMENTS = (
    "setuptools>=77.0.3,<81",
    "setuptools-scm>=8",
    "setuptools-rust>=1.9",
    "packaging",
    "wheel",
    "jinja2",
)
"""What upstream's setup.py imports to name itself; its build requirements add all of torch."""
TEST_REQUIREMENTS = ("tblib",)
"""What upstream's conftest imports beyond vLLM's own requirements."""

_OPT = {
    "activation_function": "relu",
    "architectures": ["OPTForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "dropout": 0.1,
    "eos_token_id": 2,
    "init_std": 0.02,
    "layerdrop": 0.0,
    "max_position_embeddings": 2048,
    "model_type": "opt",
    "pad_token_id": 1,
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": 50272,
}
HUB_CONFIGS = {
    "facebook/opt-125m": _OPT
    | {
        "do_layer_norm_before": True,
        "ffn_dim": 3072,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "word_embed_proj_dim": 768,
    },
    "facebook/opt-350m": _OPT
    | {
        "do_layer_norm_before": False,
        "ffn_dim": 4096,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "word_embed_proj_dim": 512,
    },
}
"""The published shapes of the text models whose configuration, and no more, the core tests want.

The others they name are multimodal, and vLLM cannot even inspect those without torchvision.
"""


class UpstreamTestsError(Exception):
    """Upstream's tests cannot be had or do not fit this interpreter."""


def cache_dir() -> Path:
    """Where everything of this folder is kept: ``$XDG_CACHE_HOME/vllm-helium/upstream-tests``."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = root / "vllm-helium" / "upstream-tests"
    path.mkdir(parents=True, exist_ok=True)
    return path


def fetch_sdist() -> Path:
    """Returns the verified source distribution, downloading it at most once.

    pip insists on the metadata of what it downloads. The build therefore runs without isolation on
    the running interpreter's torch, beside a few small packages; with isolation pip would download
    another torch.

    Raises:
        UpstreamTestsError: pip cannot get it, or its hash is not the pinned one.
    """
    local = cache_dir() / f"vllm-{UPSTREAM_VERSION}.tar.gz"
    if not local.exists():
        with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".download-") as scratch:
            requirements = install_into(Path(scratch) / "requirements", METADATA_REQUIREMENTS)
            environment = os.environ | {
                "PYTHONPATH": str(requirements),
                "VLLM_SKIP_VERSION_SUFFIX": "1",
                "VLLM_TARGET_DEVICE": "empty",
            }
            options = ["--no-deps", "--no-build-isolation", "--no-binary=vllm", "--dest", scratch]
            _pip(["download", *options, f"vllm=={UPSTREAM_VERSION}"], environment)
            os.replace(Path(scratch) / local.name, local)
    with local.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SDIST_SHA256:
        raise UpstreamTestsError(
            f"{local}: sha256 is {found}, expected {SDIST_SHA256}; delete the file and try again"
        )
    return local


def unpack_tests(sdist: Path) -> Path:
    """Returns the folder that holds upstream's ``tests``; unpacks it on first use."""
    target = cache_dir() / f"vllm-{UPSTREAM_VERSION}"
    if target.exists():
        return target
    prefix = f"vllm-{UPSTREAM_VERSION}/"
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".unpack-") as scratch:
        with tarfile.open(sdist) as archive:
            members = [m for m in archive if m.name.startswith(f"{prefix}tests/")]
            archive.extractall(scratch, members, filter="data")
        unpacked = Path(scratch) / prefix
        # Its own ini file keeps pytest from taking up the settings of a folder further up.
        (unpacked / "pytest.ini").write_text("[pytest]\n")
        _move_into_place(unpacked, target)
    return target


def make_offline_hub() -> Path:
    """Returns an ``HF_HOME`` that holds the configurations of ``HUB_CONFIGS`` and no more."""
    content = json.dumps(HUB_CONFIGS, sort_keys=True)
    target = cache_dir() / f"hf-home-{_hexdigest(content)[:12]}"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".hub-") as scratch:
        for name, config in HUB_CONFIGS.items():
            text = json.dumps(config, indent=2, sort_keys=True)
            revision = _hexdigest(text)
            model = Path(scratch) / "home" / "hub" / f"models--{name.replace('/', '--')}"
            (model / "refs").mkdir(parents=True)
            (model / "refs" / "main").write_text(revision)
            (model / "snapshots" / revision).mkdir(parents=True)
            (model / "snapshots" / revision / "config.json").write_text(text)
        _move_into_place(Path(scratch) / "home", target)
    return target


def test_requirements() -> Path | None:
    """Returns a folder for ``PYTHONPATH`` with what upstream's conftest lacks here, if anything."""
    missing = tuple(r for r in TEST_REQUIREMENTS if importlib.util.find_spec(r) is None)
    return install_into(cache_dir() / "requirements", missing) if missing else None


def install_into(target: Path, requirements: tuple[str, ...]) -> Path:
    """Installs packages into a folder of their own, so that the environment stays as it is."""
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".install-") as scratch:
            installed = Path(scratch) / "packages"
            _pip(["install", "--target", str(installed), *requirements], dict(os.environ))
            _move_into_place(installed, target)
    return target


def _pip(arguments: list[str], environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise UpstreamTestsError(
            f"`pip {' '.join(arguments)}` failed with {done.returncode}: "
            f"{(done.stderr or done.stdout).strip()[-1500:]}"
        )


def _hexdigest(text: str) -> str:
    """40 hex digits, as a revision of the hub has."""
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def _move_into_place(source: Path, target: Path) -> None:
    """Renames a finished folder; where another process was faster, its result stands."""
    try:
        source.rename(target)
    except OSError:
        if not target.exists():
            raise
        shutil.rmtree(source, ignore_errors=True)
