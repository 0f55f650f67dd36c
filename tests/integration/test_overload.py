"""A real engine with ten times more work than fits serves everybody and loses nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import ENGINE_TIMEOUT_S, _environment

pytestmark = [pytest.mark.engine, pytest.mark.slow]

MINUTES = float(os.environ.get("HELIUM_ENGINE_SOAK_MINUTES", "0.5"))


def test_an_overloaded_engine_serves_everybody(tmp_path, tiny_model):
    result = tmp_path / "result.json"
    script = Path(__file__).with_name("soak_process.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tiny_model), str(60 * MINUTES), str(result)],
        env=_environment(sys.executable),
        capture_output=True,
        text=True,
        timeout=ENGINE_TIMEOUT_S + 120 * MINUTES,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    outcome = json.loads(result.read_text())
    print(outcome)
    assert outcome["num_left"] == 0, "calls never ended"
    assert outcome["num_leaked_blocks"] == 0
    assert outcome["num_wrong_lengths"] == 0
    assert outcome["num_other_outputs"] == 0, "overload changed an output"
    # The run must have exercised what it claims to check.
    assert outcome["num_added"] >= 300 and outcome["num_aborted"] > 0
    assert outcome["num_leases"] > 0 and outcome["num_preempted"] > 0
