"""The kit's program from end to end on the CPU engine, with a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu" / "run_workflows.py"


@pytest.mark.slow
def test_two_engines_run_their_systems_and_the_report_has_their_figures(tmp_path):
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--output", str(tmp_path)]
    command += ["--seconds", "600", "--run-limit", "200", "--workload", "trading-8b"]
    command += ["--system", "langgraph", "--system", "helium", "--rows", "1", "--max-tokens", "4"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    logs = [path.read_text()[-3000:] for path in tmp_path.glob("*.log")]
    assert done.returncode == 0, (done.stdout, done.stderr, logs)
    report = json.loads((tmp_path / "run_workflows.json").read_text())
    runs = {(run["group"], run["system"]): run for run in report["runs"]}
    assert set(runs) == {(0, "langgraph"), (1, "helium")} and len(report["runs"]) == 3
    assert [run["status"] for run in report["runs"]] == ["done"] * 3, logs
    stock, ours = runs[0, "langgraph"], runs[1, "helium"]
    assert (stock["num_calls"], ours["num_calls"]) == (88, 56)
    assert stock["num_output_tokens"] == 88 * 4 - 8 // 4 * 1  # two arbitrage traders say less
    for run in runs.values():
        assert run["num_prefill_tokens"] >= run["num_missed_tokens"] > 0
        assert run["num_unplanned_contexts"] == 0
        assert run["latency_p50_s"] <= run["latency_p95_s"] <= run["makespan_s"]
    schedulers = [e["scheduler"] for e in report["engines"] if e["kind"] == "engine"]
    assert schedulers == ["Scheduler", "HeliumScheduler"]
    assert [noise["system"] for noise in report["noise"]] == ["langgraph"]
    [skipped] = report["skipped"]
    assert skipped["what"] == "calibration" and "tiny on cpu" in skipped["reason"]
