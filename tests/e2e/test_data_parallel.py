"""``vllm serve --helium --data-parallel-size 2``: each rank is an engine of the planner."""

import collections
import json
import urllib.request

import psutil
import pytest

from benchmarks.workflows import mapreduce
from helium import graphs, ops
from tests.e2e import kill_moments
from tests.e2e.conftest import serve, stop
from tests.e2e.test_workflows import naive, register, request, until

pytestmark = [pytest.mark.engine, pytest.mark.slow]

WORKLOAD = mapreduce.build_mmlu(6, scale=0.2, max_tokens=12)


def start(folder):
    state = ("--helium-state-dir", str(folder / "state"))
    return serve(folder, "--helium", "--data-parallel-size", "2", *state)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = start(tmp_path_factory.mktemp("ranks"))
    yield server
    stop(server)


def chain(num_rows):
    """Two calls a row, long enough that a run is not over before it is broken off."""
    question = ops.placeholder("question")
    sampling = {"max_tokens": 160, "ignore_eos": True}
    first = ops.llm([ops.Msg("user", ["One: ", question])], name="first", **sampling)
    second = ops.llm([ops.Msg("user", ["Two: ", first])], name="second", **sampling)
    batch = {"question": [f"question {row}" for row in range(num_rows)]}
    return graphs.build({"first": first, "second": second}), batch


def get(server, path):
    with urllib.request.urlopen(server.base_url + path, timeout=120) as answer:
        return answer.read().decode()


def engine_of_calls(server, path):
    """Returns how many calls of a run each engine answered, by the run's events."""
    lines = [line for line in get(server, path + "/events").splitlines() if "data:" in line]
    events = [json.loads(line.removeprefix("data:")) for line in lines]
    calls = [event for event in events if event["type"] == "call_finished"]
    return collections.Counter(call["engine"] for call in calls if call["origin"] == "engine")


def test_calls_reach_the_rank_they_are_placed_on_and_outputs_are_those_of_naive_calls(server):
    path = register(server, WORKLOAD.graph)
    body = {"inputs": dict(WORKLOAD.batch), "wait": True, "run": "r"}
    status, done = request(server, "POST", path + "/runs", body)
    assert status == 200 and done["status"] == "done" and done["failures"] == []
    placed = engine_of_calls(server, path + "/runs/r")
    assert placed.keys() == {0, 1} and placed.total() == done["usage"]["num_calls"]

    # A rank knows its own plan alone: a call that strayed would be an unplanned context there.
    ranks = request(server, "GET", "/v1/helium/status")[1]["engines"]
    for rank, engine in enumerate(ranks):
        assert engine["num_planned_requests"] == placed[rank]
        assert engine["num_unplanned_contexts"] == 0 and engine["num_plans"] == 1
        assert engine["prewarm"]["is_on"] and engine["prewarm"]["num_requests"] > 0
    hits = [line for line in get(server, "/metrics").splitlines() if "cache_hit_tokens_t" in line]
    for rank in "01":
        assert any(f'engine="{rank}"' in line and not line.startswith("#") for line in hits)

    assert done["results"] == naive(server, WORKLOAD)


def test_a_killed_rank_ends_the_server_and_the_next_one_goes_on_with_the_run(server):
    folder = server.log.parent
    store = folder / "state" / "runs.db"
    graph, batch = chain(48)
    num_calls = 96
    path = register(server, graph) + "/runs"
    body = {"inputs": batch}
    unbroken = request(server, "POST", path, body | {"wait": True, "cache_salt": "unbroken"})[1]
    assert unbroken["failures"] == []
    assert request(server, "POST", path, body | {"run": "broken"})[0] == 202
    main = psutil.Process(server.process.pid)
    children = main.children(recursive=True)
    (rank,) = [child for child in children if "EngineCore_DP1" in " ".join(child.cmdline())]
    until(lambda: request(server, "GET", f"{path}/broken")[1]["num_done"] > 3)
    rank.kill()
    server.process.wait(kill_moments.WAIT_S)
    _, alive = psutil.wait_procs(children, timeout=kill_moments.WAIT_S)
    assert alive == [], "the other rank ends with the server"
    done = kill_moments.finished_calls(store, "broken")
    # Until the server ends, which takes a moment, the other rank goes on, with all that is left.
    assert len(done) > 3

    again = start(folder)
    try:
        until(lambda: request(again, "GET", f"{path}/broken")[1]["status"] == "done", 300)
        whole = request(again, "GET", f"{path}/broken")[1]
        assert whole["failures"] == [] and whole["results"] == unbroken["results"]
        assert len(kill_moments.finished_calls(store, "broken")) == num_calls, "none made twice"
        left = num_calls - len(done)
        until(lambda: kill_moments.num_engine_requests(again) >= left)
        assert kill_moments.num_engine_requests(again) == left
    finally:
        stop(again)
