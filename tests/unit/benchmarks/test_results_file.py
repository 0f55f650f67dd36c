"""Files of results: readable back, with what they were made with."""

from __future__ import annotations

import json
import sys

from benchmarks.results_file import environment, write_results


def test_a_file_of_results_has_the_command_and_the_versions(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys, "orig_argv", ["/usr/bin/python3", "-m", "benchmarks.simulate", "--warm"]
    )
    path = tmp_path / "new" / "figures.json"
    write_results(path, {"environment": environment(), "results": [{"makespan_s": 1.5}]})
    content = json.loads(path.read_text())
    assert content["results"] == [{"makespan_s": 1.5}]
    found = content["environment"]
    assert found["command"] == "python -m benchmarks.simulate --warm"
    assert found["python"] == sys.version.split()[0]
    assert found["revision"] and found["num_cores"] >= 1
    assert {"vllm", "torch", "cpu", "load_average"} <= found.keys()
