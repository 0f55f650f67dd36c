"""``vllm serve --helium --data-parallel-size 2``: each rank is an engine of the planner."""

import collections
import json
import urllib.request

import pytest

from benchmarks.workflows import mapreduce
from tests.e2e.conftest import serve, stop
from tests.e2e.test_workflows import naive, register, request

pytestmark = [pytest.mark.engine, pytest.mark.slow]

WORKLOAD = mapreduce.build_mmlu(6, scale=0.2, max_tokens=12)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    options = ("--helium", "--data-parallel-size", "2", "--api-server-count", "1")
    server = serve(tmp_path_factory.mktemp("ranks"), *options)
    yield server
    stop(server)


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
