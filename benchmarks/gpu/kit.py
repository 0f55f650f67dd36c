"""Where the programs of this folder run from: a checkout, or the archive that `pack` makes."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "site"
"""Packages that came along because the GPU machine may lack them; its own come first elsewhere."""
MANIFEST = ROOT / "kit.json"
"""Written by `pack`: what the archive holds."""

PACKAGES = ("torch", "triton", "transformers", "tokenizers", "numpy", "pydantic", "vllm")


def paths() -> list[str]:
    """Returns what a process of this kit needs on its path."""
    return [str(ROOT), *([str(SITE)] if SITE.is_dir() else [])]


def child_environment(**values: str) -> dict[str, str]:
    """Returns the environment of a process of this kit."""
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([*paths(), *([inherited] if inherited else [])])
    return {**os.environ, "PYTHONPATH": path, **values}


def revision() -> str:
    """Returns the commit that this code is, or ``unknown``."""
    if MANIFEST.exists():
        return str(json.loads(MANIFEST.read_text())["revision"])
    command = ["git", "describe", "--always", "--dirty"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def machine() -> dict[str, Any]:
    """Returns what a measurement was made with; asks nothing of the GPU."""
    found: dict[str, Any] = {
        "revision": revision(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "num_cores": os.cpu_count(),
        "command": " ".join(sys.argv),
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def card() -> dict[str, Any]:
    """Returns what torch says of the GPU; empty without one. Initializes CUDA."""
    import torch

    if not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,clocks.max.memory"]
    try:
        answer = subprocess.run(
            [*query, "--format=csv,noheader"], capture_output=True, text=True, timeout=30
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        answer = ""
    return {
        "card": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "driver_and_clocks": answer,
    }
