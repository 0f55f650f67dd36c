"""``/v1/workflows`` of a real server: outputs, restarts, cancelling."""

import json
import os
import signal
import time
import urllib.request

import pytest

from benchmarks.workflows import mapreduce
from helium import graphs, ops
from helium.plan.interpret import interpret
from tests.e2e.conftest import serve, stop
from tests.e2e.test_server import send

pytestmark = pytest.mark.engine


def request(server, method, path, body=None):
    raw = None if body is None else json.dumps(body).encode()
    return send(server, method, path, raw)


def register(server, graph, name="test"):
    plan = json.loads(graph.plan.to_json())
    status, info = request(server, "POST", "/v1/workflows", {"name": name, "plan": plan})
    assert status == 200, info
    return f"/v1/workflows/{info['id']}"


def naive(server, workload):
    """Runs a workflow call by call over the chat route, with nothing of ours."""

    def model(call, operator, row):
        messages = [{"role": role, "content": content} for role, content in call.messages]
        body = {"model": "tiny", "messages": messages, "temperature": 0}
        body["max_tokens"] = call.sampling.max_tokens
        status, answer = request(server, "POST", "/v1/chat/completions", body)
        assert status == 200, answer
        return tuple(choice["message"]["content"] for choice in answer["choices"])

    return interpret(workload.compile(), model)


def endless(num_rows):
    prompt = ["go on ", ops.placeholder("word")]
    node = ops.llm([ops.Msg("user", prompt)], name="talk", max_tokens=3000, ignore_eos=True)
    return graphs.build({"talk": node}), {"word": [str(row) for row in range(num_rows)]}


def until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def test_a_workflow_over_http_gives_what_naive_calls_give(helium_server):
    workload = mapreduce.build_mmlu(2, scale=0.1, max_tokens=6)
    path = register(helium_server, workload.graph)
    body = {"inputs": dict(workload.batch), "wait": True}
    status, done = request(helium_server, "POST", path + "/runs", body)
    assert status == 200 and done["status"] == "done" and done["failures"] == []
    assert done["results"] == naive(helium_server, workload)
    assert done["usage"]["num_calls"] == 16, "seven experts of fourteen are distinct"


def test_the_model_may_go_by_its_served_name_and_by_no_other(helium_server):
    question = ops.placeholder("q")
    for name, num_failures in (("tiny", 0), ("ghost", 1)):
        node = ops.llm([ops.Msg("user", ["x", question])], model=name, max_tokens=2)
        path = register(helium_server, graphs.build({"answer": node}))
        body = {"inputs": {"q": "y"}, "wait": True}
        _, done = request(helium_server, "POST", path + "/runs", body)
        assert len(done["failures"]) == num_failures


def test_deltas_of_running_calls_put_together_are_their_outputs(helium_server):
    prompt = ["go on ", ops.placeholder("word")]
    sampling = {"max_tokens": 200, "ignore_eos": True, "n": 2, "temperature": 1.0, "seed": 1}
    node = ops.llm([ops.Msg("user", prompt)], name="talk", **sampling)
    path = register(helium_server, graphs.build({"talk": node}))
    _, run = request(helium_server, "POST", path + "/runs", {"inputs": {"word": ["a", "b"]}})
    url = f"{helium_server.base_url}{path}/runs/{run['id']}/events?stream=tokens"
    with urllib.request.urlopen(url, timeout=300) as answer:
        data = [line[6:] for line in answer if line.startswith(b"data: ")]
    events = [json.loads(line) for line in data]
    texts, outputs, num_deltas = {}, {}, 0
    for event in events:
        row = event.get("row")
        if event["type"] == "call_delta":
            assert row not in outputs and not event["replaces"]
            texts.setdefault(row, ["", ""])[event["index"]] += event["text"]
            num_deltas += 1
        elif event["type"] == "call_finished":
            outputs[row] = event["outputs"]
    assert texts == outputs and len(outputs) == 2
    assert num_deltas > 4, "more than one of an output"


def test_cancelling_a_run_frees_the_engine(helium_server):
    graph, inputs = endless(12)
    path = register(helium_server, graph)
    _, info = request(helium_server, "POST", path + "/runs", {"inputs": inputs})

    def load():
        engine = request(helium_server, "GET", "/v1/helium/status")[1]["engines"][0]
        return engine["num_running"], engine["num_waiting"]

    until(lambda: load()[0] > 0)
    status, run = request(helium_server, "DELETE", f"{path}/runs/{info['id']}")
    assert (status, run["status"]) == (200, "cancelled")
    until(lambda: load() == (0, 0))
    assert helium_server.is_healthy()


@pytest.mark.slow
def test_a_run_goes_on_after_the_server_was_killed(tmp_path):
    options = ("--helium", "--helium-state-dir", str(tmp_path / "state"))
    workload = mapreduce.build_mmlu(6, scale=0.1, max_tokens=64)
    server = serve(tmp_path, *options)
    try:
        path = register(server, workload.graph)
        body = {"inputs": dict(workload.batch), "run": "r1"}
        assert request(server, "POST", path + "/runs", body)[0] == 202
        seen = [0]

        def begun():
            seen.append(request(server, "GET", path + "/runs/r1")[1]["num_done"])
            return seen[-1] > 3

        until(begun)
        assert seen[-1] < 48, "the run was over before the server was killed"
    finally:
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()
    server = serve(tmp_path, *options)
    try:
        until(lambda: request(server, "GET", path + "/runs/r1")[1]["status"] == "done")
        done = request(server, "GET", path + "/runs/r1")[1]
        assert done["failures"] == [] and done["results"] == naive(server, workload)
        assert done["usage"]["num_calls"] == 48, "nothing was lost, nothing done twice"
    finally:
        stop(server)
