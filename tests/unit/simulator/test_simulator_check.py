"""Whole workflows: the simulator does what the CPU engine does, call for call."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")

REPO = Path(__file__).resolve().parents[3]
TIMEOUT_S = 900


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize("workflow", ["mapreduce-mmlu", "debate-tatqa", "trading-4b"])
def test_a_workflow_has_the_engines_prefill_hits_and_evictions(tmp_path, workflow):
    output = tmp_path / "counts.json"
    command = [sys.executable, "-m", "benchmarks.simulator_check", "--workflow", workflow]
    command += ["--system", "langgraph", "--system", "helium", "--output", str(output)]
    path = os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        cwd=REPO,
        env=os.environ | {"PYTHONPATH": path.rstrip(os.pathsep)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    rows = json.loads(output.read_text())["results"]
    assert [row["system"] for row in rows] == ["langgraph", "helium"]
    for row in rows:
        assert row["is_equal"]
        assert row["engine"]["num_evictions"] > 0 and row["engine"]["num_cached_tokens"] > 0
