"""What is handed to frameworks, and how runs of real systems are compared. No server is started."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("vllm")

from benchmarks.real_systems import __main__ as real_systems
from benchmarks.real_systems import framework_client
from benchmarks.real_systems.environments import PACKAGES, ensure
from benchmarks.real_systems.jobs import job_of, prompt_digest
from benchmarks.real_systems.servers import serve
from benchmarks.real_systems.systems import Day
from benchmarks.workflows import WORKFLOWS
from helium.errors import EngineError
from helium.plan.interpret import interpret


@pytest.mark.parametrize("name", ["mapreduce-mmlu", "debate-tatqa", "trading-4b"])
def test_a_job_renders_the_prompts_of_the_workflow(name):
    workload = WORKFLOWS[name](size=2, scale=0.02)
    expected, answers = {}, {}

    def answer(call, operator, row):
        expected[operator, row] = prompt_digest(call.messages)
        answers.setdefault(row, {})[operator] = f"{operator} says {row}"
        return (f"{operator} says {row}",)

    interpret(workload.compile(), answer)
    job = json.loads(json.dumps(job_of(workload)))
    found = {
        (operator["name"], row): framework_client.digest(
            framework_client.rendered(operator, job["columns"], row, answers[row])
        )
        for operator in job["operators"]
        for row in range(2)
    }
    assert found == expected


def test_a_job_names_what_must_come_before():
    job = job_of(WORKFLOWS["mapreduce-mmlu"](size=1, scale=0.02))
    *experts, summarizer = job["operators"]
    assert [o["depth"] for o in experts] == [1] * 14 and summarizer["depth"] == 2
    assert summarizer["reads"] == sorted(o["name"] for o in experts)
    assert job["outputs"] == [summarizer["name"]] and summarizer["max_tokens"] == 512


def test_answers_are_compared_by_prompt():
    days = [WORKFLOWS["mapreduce-mmlu"](size=1, scale=0.02)]
    same = {"a": "1", "b": "2"}
    found = {
        "langgraph": [Day(4.0, 3.0, same, 4), Day(5.0, 3.5, same, 4)],
        "agentscope": [Day(6.0, 3.0, {"a": "1", "b": "3", "c": "4"}, 4)],
        "helium": [Day(2.0, 1.5, {"a": "1"}, 1)],
    }
    result = real_systems._compared("mapreduce-mmlu", days, found)
    rows = result["systems"]
    assert [rows[name]["different_answers"] for name in found] == [0, 2, 0]
    assert not result["is_identical"]
    assert rows["langgraph"]["ratio_to_ours"] == 2.0 and rows["langgraph"]["noise_ratio"] == 1.25
    assert rows["langgraph"]["cpu_ratio_to_ours"] == 2.0
    assert "| langgraph | 4.0 | 1.25 | 2.00 | 2.00 | 4 | 0 |" in real_systems.table(result)


def test_a_finished_environment_is_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("something was installed"))
    (tmp_path / "stock").mkdir()
    (tmp_path / "stock" / ".installed").write_text("\n".join(PACKAGES["stock"]) + "\n")
    assert ensure("stock", tmp_path) == tmp_path / "stock" / "bin" / "python"


def test_a_server_that_does_not_start_shows_its_log(tmp_path):
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\nprint('no such model'); raise SystemExit(3)\n")
    program.chmod(0o755)
    with (
        pytest.raises(EngineError, match=r"(?s)did not start.*no such model"),
        serve(program, tmp_path, tmp_path / "server.log"),
    ):
        pass
