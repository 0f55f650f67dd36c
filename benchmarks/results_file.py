"""What every file of results has: the environment it was made in, and one way to write it."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu import kit


def environment() -> dict[str, Any]:
    """Returns what figures depend on besides their arguments.

    The load average is that of the last minute, when this is called.
    """
    return kit.machine() | {
        "command": " ".join(["python", *sys.orig_argv[1:]]),
        "cpu": _cpu(),
        "load_average": os.getloadavg()[0],
    }


def write_results(path: Path, content: Any) -> None:
    """Writes plain values as JSON; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def _cpu() -> str:
    """Returns the processor's name; Linux tells it in one place, of which others have none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
