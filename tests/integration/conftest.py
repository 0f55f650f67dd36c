"""Fixtures for tests against a real engine: a tiny model, a quick environment, a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vllm_helium.models.tiny import make_tiny_llama

FAST_ENGINE_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
"""One process and one thread: an engine starts in 3 s, and runs repeat exactly."""
FAST_ENGINE_ARGUMENTS = {
    "block_size": 32,
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 64 << 20,
    "max_model_len": 2048,
}
"""Block size 32 is the smallest the CPU's attention takes."""
ENGINE_TIMEOUT_S = 600
REPO = Path(__file__).resolve().parents[2]

Prompt = str | list[int]


@dataclass(frozen=True)
class EngineOutput:
    """What one prompt gave: its output tokens and how many of its prompt tokens were cached."""

    token_ids: tuple[int, ...]
    num_cached_tokens: int


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 2 layers and hidden size 64 with a byte-level tokenizer."""
    return make_tiny_llama(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture
def engine_env(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Sets the environment of a quick engine in this process; returns quick ``LLM`` arguments."""
    for name, value in FAST_ENGINE_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return dict(FAST_ENGINE_ARGUMENTS)


@pytest.fixture
def stock_python() -> str:
    """The interpreter of an environment with stock vLLM, named by ``HELIUM_STOCK_PYTHON``."""
    python = os.environ.get("HELIUM_STOCK_PYTHON")
    if not python:
        pytest.skip("HELIUM_STOCK_PYTHON names no interpreter with stock vLLM")
    return python


@pytest.fixture
def run_engine(tmp_path: Path, tiny_model: Path) -> Callable[..., list[list[EngineOutput]]]:
    """Runs rounds of prompts on a fresh engine in a fresh process.

    ``run_engine(rounds, python=..., model=..., sampling=..., plans=..., workflows=..., **llm)``:

    * ``rounds``: batches of prompts (texts or token ids), generated one batch after the other.
    * ``python``: another environment's interpreter; the default is this one.
    * ``sampling``: fields of ``SamplingParams``; the default is greedy, 16 tokens, no stop.
    * ``plans``: ``EnginePlan`` JSON texts to register first; ``workflows``: per round, one context
      (a dict) or ``None`` per prompt. Both need the fork.
    * ``**llm``: arguments of ``LLM``, over ``FAST_ENGINE_ARGUMENTS``.

    Returns one list of ``EngineOutput`` per round, in the order of the prompts.
    """

    def run(
        rounds: Sequence[Sequence[Prompt]],
        *,
        python: str = sys.executable,
        model: Path = tiny_model,
        sampling: dict[str, Any] | None = None,
        plans: Sequence[str] = (),
        workflows: Sequence[Sequence[dict[str, Any] | None]] = (),
        **llm: Any,
    ) -> list[list[EngineOutput]]:
        job = {
            "llm": FAST_ENGINE_ARGUMENTS | llm,
            "model": str(model),
            "plans": list(plans),
            "rounds": rounds,
            "sampling": {"temperature": 0.0, "max_tokens": 16, "ignore_eos": True}
            | (sampling or {}),
            "workflows": workflows,
        }
        job_path, result_path = tmp_path / "job.json", tmp_path / "result.json"
        job_path.write_text(json.dumps(job))
        result_path.unlink(missing_ok=True)
        script = Path(__file__).with_name("engine_process.py")
        done = subprocess.run(
            [python, str(script), str(job_path), str(result_path)],
            env=_environment(python),
            capture_output=True,
            text=True,
            timeout=ENGINE_TIMEOUT_S,
        )
        if done.returncode or not result_path.exists():
            pytest.fail(f"the engine process ended with {done.returncode}:\n{done.stderr[-4000:]}")
        return [
            [EngineOutput(tuple(o["token_ids"]), o["num_cached_tokens"]) for o in outputs]
            for outputs in json.loads(result_path.read_text())
        ]

    return run


def _environment(python: str) -> dict[str, str]:
    """This environment made quick; only our own interpreter sees this repository."""
    environment = os.environ | FAST_ENGINE_ENVIRONMENT
    if python == sys.executable:
        paths = [str(REPO), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    else:
        environment.pop("PYTHONPATH", None)
    return environment
