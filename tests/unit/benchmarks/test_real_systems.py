"""What is handed to frameworks, and how runs of real systems are compared. No server is started."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
import pytest

pytest.importorskip("vllm")

from benchmarks.real_systems import __main__ as real_systems
from benchmarks.real_systems import comparison, framework_client
from benchmarks.real_systems.environments import PACKAGES, ensure
from benchmarks.real_systems.floor import least_prefill_tokens
from benchmarks.real_systems.jobs import job_of, prompt_digest
from benchmarks.real_systems.servers import Tokens, read_tokens, serve
from benchmarks.real_systems.systems import Day
from benchmarks.workflows import WORKFLOWS
from helium.errors import EngineError
from helium.plan.interpret import interpret
from helium.templates.tokenizer import WordTokenizer


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
        "langgraph": [Day(4.0, 3.0, same, 4, Tokens(90, 70, 30, 20)), Day(5.0, 3.5, same, 4)],
        "agentscope": [Day(6.0, 3.0, {"a": "1", "b": "3", "c": "4"}, 4)],
        "helium": [Day(2.0, 1.5, {"a": "1"}, 1, least_prefill_tokens=1234)],
    }
    shape = {"scale": 0.02, "max_tokens": 512}
    result = comparison.compared(days, found, 32, shape)
    rows = result["systems"]
    assert [rows[name]["different_answers"] for name in found] == [0, 2, 0]
    assert not result["is_identical"]
    assert rows["langgraph"]["ratio_to_ours"] == 2.0 and rows["langgraph"]["noise_ratio"] == 1.25
    assert rows["langgraph"]["cpu_ratio_to_ours"] == 2.0
    row = "| langgraph | 4.0 | 1.25 | 2.00 | 3.0 | 2.00 | 4 | 70 | 30 | 20 | 0 |"
    text = comparison.summary({"environment": {"command": "run"}, "workloads": [result]})
    assert row in text and "mapreduce-mmlu, 1 rows, block size: 32" in text
    assert "at least 1,234 prompt tokens" in text


def test_a_servers_tokens_are_read_from_its_metrics():
    labels = 'engine="0",model_name="model"'
    text = f"""# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
vllm:prompt_tokens_total{{{labels}}} 1200.0
vllm:prompt_tokens_by_source_total{{{labels},source="local_compute"}} 900.0
vllm:prompt_tokens_by_source_total{{{labels},source="local_cache_hit"}} 300.0
vllm:prompt_tokens_cached_total{{{labels}}} 300.0
vllm:generation_tokens_total{{{labels}}} 1.5e+03
vllm:iteration_tokens_total_bucket{{{labels},le="8.0"}} 30.0
vllm:iteration_tokens_total_count{{{labels}}} 40.0
"""
    assert read_tokens(text) == Tokens(1200, 900, 1500, 40)
    assert read_tokens(text).since(Tokens(200, 100, 500, 30)) == Tokens(1000, 800, 1000, 10)
    with pytest.raises(EngineError, match="num_output"):
        read_tokens(text.replace("generation", "other"))


def _measured(monkeypatch, *arguments, seconds=0.0):
    """Returns the systems in the order in which a measurement runs them, workload by workload."""
    order = []

    def run(system, server, days, model):
        order.append((days[-1].name, system, server))
        if system != "dataflow":
            clock[0] += seconds
        return [Day(1.0, 1.0, {"a": "1"}, 1)] * len(days)

    @contextmanager
    def serve(python, model, log, extra):
        block = "/32" if "--block-size" in extra else ""
        yield ("ours" if "--helium" in extra else "stock") + block

    clock = [0.0]
    monkeypatch.setattr(real_systems, "run", run)
    monkeypatch.setattr(real_systems, "serve", serve)
    monkeypatch.setattr(real_systems.time, "monotonic", lambda: clock[0])
    options = real_systems._parser().parse_args(arguments)
    workloads = {
        name: [WORKFLOWS[name](size=1, scale=0.02)] for name in ("mapreduce-mmlu", "trading-8b")
    }
    found = real_systems.measure(workloads, None, None, options)
    return [entry for entry in order if entry[1] != "dataflow"], found


def test_the_first_system_and_ours_come_first_and_are_repeated(monkeypatch):
    order, found = _measured(monkeypatch, "--block-size", "0")
    pairs = [("langgraph", "stock"), ("helium", "ours")]
    assert [entry[1:] for entry in order[:4]] == pairs * 2
    assert [entry[1:] for entry in order[-6:-2]] == pairs * 2
    assert [entry[1] for entry in order[-2:]] == ["query_wise"] * 2
    assert len(order) == 16 and {entry[2] for entry in order[4:-6]} == {"stock"}
    assert [len(runs) for runs in found[0]["trading-8b"].values()] == [2, 2, 1, 1, 1, 1]


def test_what_would_end_after_the_limit_is_not_started(monkeypatch):
    order, found = _measured(monkeypatch, "--block-size", "0", "--limit", "69", seconds=10.0)
    assert len(order) == 6
    assert [[*runs] for runs in found[0].values()] == [
        ["langgraph", "helium", "agentscope", "op_wise"], ["langgraph", "helium"]
    ]  # fmt: skip


def test_the_smallest_block_gets_the_first_system_and_ours_and_time_is_kept_for_it(monkeypatch):
    order, found = _measured(monkeypatch, "--limit", "109", seconds=10.0)
    pairs = [("langgraph", "stock/32"), ("helium", "ours/32")]
    assert [entry[1:] for entry in order[-4:]] == pairs * 2
    # Four runs of the first round, four for the small block, one more fits in between.
    assert len(order) == 10 and [*found] == [0, 32]
    assert [[*runs] for runs in found[32].values()] == [["langgraph", "helium"]] * 2


def test_a_shape_is_the_workloads_own_but_for_what_was_asked_for():
    options = real_systems._parser().parse_args(["--rows", "3", "--max-tokens", "7"])
    expected = real_systems.WORKLOADS["trading-8b"] | {"size": 3, "max_tokens": 7}
    assert real_systems._shape("trading-8b", options) == expected


def test_the_least_prefill_computes_common_tokens_once_and_every_last_one():
    tokenizer = WordTokenizer()
    # <|im_start|> user one two <|im_end|> <|im_start|> assistant, and three as the answer
    first = [("user", "one two")]
    num_tokens = len(tokenizer.encode(tokenizer.render_chat(_turns(first), True)).token_ids)
    assert least_prefill_tokens([(first, "three")], tokenizer) == num_tokens
    assert least_prefill_tokens([(first, "three")] * 3, tokenizer) == num_tokens + 2
    going_on = [*first, ("assistant", "three"), ("user", "four")]
    both = least_prefill_tokens([(first, "three"), (going_on, "five")], tokenizer)
    alone = len(tokenizer.encode(tokenizer.render_chat(_turns(going_on), True)).token_ids)
    assert both < alone + 1  # the first prompt and its answer are in the second


def _turns(messages):
    return [{"role": role, "content": text} for role, text in messages]


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


def test_a_server_ends_with_the_program_that_started_it_however_that_ends():
    code = (
        "import subprocess, sys, time\n"
        "from benchmarks.real_systems.servers import end_with_parent\n"
        "sleep = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "child = subprocess.Popen(sleep, start_new_session=True, preexec_fn=end_with_parent)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    # Whoever adopts it may not reap it; what counts is that it runs no more.
    deadline = time.monotonic() + 60
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the child goes on"
        time.sleep(0.05)
