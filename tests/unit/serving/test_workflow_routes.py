"""``/v1/workflows`` over an engine that answers at once."""

import asyncio
import json

import pytest

from helium import graphs, ops
from helium.errors import EngineError
from helium.plan.operators import Sampling
from tests.unit.runtime.engines import Engine, TypistWhenAsked, echo
from tests.unit.serving.app import register, serving
from vllm_helium.serving import workflow_routes

SAMPLED = Sampling(temperature=1.0, n=2)


def graph():
    topic = ops.placeholder("topic")
    draft = ops.llm([ops.Msg("user", ["draft ", topic])], name="draft")
    rate = ops.llm([ops.Msg("user", ["rate ", draft])], name="rate", sampling=SAMPLED)
    return graphs.build({"text": draft, "rating": rate})


PLAN = json.loads(graph().plan.to_json())


async def numbered(client, path, last=None, stream=""):
    headers = {} if last is None else {"Last-Event-ID": str(last)}
    answer = await client.get(path + "/events" + stream, headers=headers)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event")
    events = []
    for frame in answer.text.split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in frame.split("\n"))
        events.append((int(fields["id"]) if "id" in fields else None, json.loads(fields["data"])))
    return events


def run(program):
    return asyncio.run(asyncio.wait_for(program, 120))


def test_a_workflow_is_registered_run_and_read_again(tmp_path):
    async def main():
        async with serving(tmp_path) as client:
            path = await register(client, graph())
            assert path == await register(client, graph()), "registering is idempotent"
            assert path != await register(client, graph(), "other")
            listed = (await client.get("/v1/workflows")).json()["data"]
            assert [info["name"] for info in listed] == ["test", "other"]
            assert (await client.get(path)).json()["plan"] == PLAN
            body = {"inputs": {"topic": ["a", "b"]}, "wait": True}
            answer = await client.post(path + "/runs", json=body)
            assert answer.status_code == 200
            done = answer.json()
            assert done["status"] == "done" and done["failures"] == []
            assert done["results"]["text"][1].startswith("draft b|")
            assert [len(pair) for pair in done["results"]["rating"]] == [2, 2]
            assert done["usage"]["num_calls"] == 4 and done["num_done"] == 4
            assert (await client.get(f"{path}/runs/{done['id']}")).json() == done
            runs = (await client.get(path + "/runs")).json()["data"]
            assert [info["id"] for info in runs] == [done["id"]]
            for format in ("text", "json", "html", "dot"):
                answer = await client.get(f"{path}/runs/{done['id']}/explain?format={format}")
                assert answer.status_code == 200 and "draft" in answer.text
            assert (await client.delete(path)).json()["deleted"] is True
            assert (await client.get(path)).status_code == 404
            assert (await client.post(path + "/runs", json=body)).status_code == 404
            assert (await client.get(f"{path}/runs/{done['id']}")).json() == done

    run(main())


def test_a_run_of_an_id_is_one_run_and_another_request_conflicts(tmp_path):
    async def main():
        async with serving(tmp_path, Engine(0.05)) as client:
            path = await register(client, graph())
            body = {"inputs": {"topic": ["a"]}, "run": "r1"}
            answers = [await client.post(path + "/runs", json=body) for _ in range(3)]
            assert [answer.status_code for answer in answers] == [202] * 3
            other = await client.post(path + "/runs", json=body | {"cache_salt": "x"})
            assert other.status_code == 409 and "another" in other.json()["error"]["message"]
            done = await client.post(path + "/runs", json=body | {"wait": True})
            assert done.json()["status"] == "done"
            assert len(client.engine.requests) == 2

    run(main())


def test_events_go_on_after_the_last_one_seen(tmp_path):
    async def main():
        async with serving(tmp_path, Engine(0.01)) as client:
            path = await register(client, graph())
            start = await client.post(path + "/runs", json={"inputs": {"topic": ["a", "b"]}})
            path += "/runs/" + start.json()["id"]
            live = await numbered(client, path)
            kinds = [event["type"] for _, event in live]
            assert kinds[0] == "run_started" and kinds[-1] == "run_finished"
            assert kinds.count("row_done") == 4 and kinds.count("call_finished") == 4
            written = [pair for pair in live if pair[0] is not None]
            assert [number for number, _ in written] == [1, 2, 3, 4, 5, 6]
            assert await numbered(client, path) == written
            assert await numbered(client, path, 4) == written[4:]
            assert await numbered(client, path, 6) == []
            bad = await client.get(path + "/events", headers={"Last-Event-ID": "x"})
            assert bad.status_code == 400

    run(main())


def test_how_outputs_grow_is_told_to_those_who_ask_for_it_alone(tmp_path):
    async def main():
        async with serving(tmp_path, TypistWhenAsked()) as client:
            path = await register(client, graph())
            start = await client.post(path + "/runs", json={"inputs": {"topic": "a"}})
            path += "/runs/" + start.json()["id"]
            plain, told = await asyncio.gather(
                numbered(client, path, stream="?stream=events"),
                numbered(client, path, stream="?stream=tokens"),
            )
            deltas = [pair for pair in told if pair[1]["type"] == "call_delta"]
            assert plain == [pair for pair in told if pair not in deltas]
            assert all(number is None for number, _ in deltas)
            texts = {}
            for _, delta in deltas:
                key = delta["operator"], delta["index"]
                texts[key] = texts.get(key, "") + delta["text"]
            done = (await client.get(path)).json()["results"]
            assert texts == {
                ("draft", 0): done["text"][0],
                ("rate", 0): done["rating"][0][0],
                ("rate", 1): done["rating"][0][1],
            }
            assert len(deltas) == 3 * TypistWhenAsked.num_parts
            assert await numbered(client, path, stream="?stream=tokens") == [
                pair for pair in plain if pair[0] is not None
            ]
            bad = await client.get(path + "/events?stream=words")
            assert bad.status_code == 400 and bad.json()["error"]["param"] == "stream"

    run(main())


def test_a_run_goes_on_after_a_restart_and_its_events_are_numbered_on(tmp_path):
    async def main():
        async with serving(tmp_path, Engine(1000.0)) as client:
            path = await register(client, graph())
            body = {"inputs": {"topic": ["a", "b"]}, "run": "r"}
            await client.post(path + "/runs", json=body)
        async with serving(tmp_path, resume=True) as client:
            await client.service.wait("r")
            done = (await client.get(path + "/runs/r")).json()
            assert done["status"] == "done" and len(client.engine.requests) == 4
            events = await numbered(client, path + "/runs/r")
            assert [number for number, _ in events] == list(range(1, len(events) + 1))
            assert [e["type"] for _, e in events].count("run_started") == 2

    run(main())


def test_cancelling_ends_the_calls_and_keeps_what_is_done(tmp_path):
    async def main():
        engine = Engine(1000.0)
        async with serving(tmp_path, engine) as client:
            path = await register(client, graph())
            start = await client.post(path + "/runs", json={"inputs": {"topic": ["a", "b"]}})
            path += "/runs/" + start.json()["id"]
            while engine.num_open < 2:
                await asyncio.sleep(0)
            assert (await client.delete(path)).json()["status"] == "cancelled"
            assert engine.num_cancelled == 2 and engine.num_open == 0
            assert (await client.delete(path)).json()["status"] == "cancelled"
            done = (await client.get(path)).json()
            assert [failure["reason"] for failure in done["failures"]] == [
                "the run was cancelled"
            ] * 2

    run(main())


def test_one_bad_row_of_fifty_fails_alone(tmp_path):
    def answer(call):
        if call.messages[-1][1] == "draft 7":
            raise EngineError("row 7 is bad")
        return echo(call)

    async def main():
        async with serving(tmp_path, Engine(answer=answer)) as client:
            path = await register(client, graph())
            body = {"inputs": {"topic": [str(row) for row in range(50)]}, "wait": True}
            done = (await client.post(path + "/runs", json=body)).json()
            missing = [row for row, text in enumerate(done["results"]["text"]) if text is None]
            assert missing == [7] and done["status"] == "done"
            assert done["failures"] == [{"operator": "draft", "row": 7, "reason": "row 7 is bad"}]
            assert done["usage"]["num_calls"] == 98

    run(main())


def test_a_function_is_called_by_its_registered_name_only(tmp_path):
    def shout(text):
        if text == "boom":
            raise ValueError("too loud")
        return text.upper()

    topic = ops.placeholder("topic")
    loud = graphs.build({"loud": ops.apply("shout", topic)})

    async def main():
        async with serving(tmp_path, functions={"shout": shout}) as client:
            path = await register(client, loud)
            body = {"inputs": {"topic": ["a", "boom"]}, "wait": True}
            done = (await client.post(path + "/runs", json=body)).json()
            assert done["results"] == {"loud": ["A", None]}
            assert "ValueError: too loud" in done["failures"][0]["reason"]
        async with serving(tmp_path / "b", functions={}) as client:
            body = {"plan": json.loads(loud.plan.to_json())}
            answer = await client.post("/v1/workflows", json=body)
            error = answer.json()["error"]
            assert answer.status_code == 400
            assert "'shout'" in error["message"] and "not registered" in error["message"]

    run(main())


def changed(**fields):
    operators = [dict(operator) for operator in PLAN["operators"]]
    operators[1] |= fields
    return {"plan": PLAN | {"operators": operators}}


BAD_WORKFLOWS = {
    "no body": (b"", None),
    "not JSON": (b"{", None),
    "a list": (b"[]", None),
    "unknown field": ({"plan": PLAN, "owner": 1}, None),
    "no plan": ({"name": "x"}, None),
    "plan null": ({"plan": None}, "plan"),
    "name empty": ({"plan": PLAN, "name": ""}, "name"),
    "field of another type": (changed(sampling={"max_tokens": "x"}), "sampling.max_tokens"),
    "field out of range": (changed(sampling={"top_p": 7}), "plan.operators.draft"),
    "reads a ghost": (changed(history="ghost"), "plan.operators.draft"),
    "wrong type, then bytes that are no text": (
        b'{"plan": {"version": 1, "operators": [{"type": "n3", "name": "a"}, {"t\xc6": "b"}]}}',
        "type",
    ),
    "nested": (b'{"plan": ' + b"[" * 100_000, None),
}


@pytest.mark.parametrize("name", BAD_WORKFLOWS)
def test_a_malformed_workflow_is_refused_with_operator_and_field(tmp_path, name):
    body, param = BAD_WORKFLOWS[name]

    async def main():
        async with serving(tmp_path) as client:
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            answer = await client.post("/v1/workflows", content=raw)
            error = answer.json()["error"]
            assert answer.status_code == 400 and error["message"]
            assert error["param"] == param
            if param and "sampling" in param:
                assert "operator 'draft'" in error["message"]

    run(main())


BAD_RUNS = {
    "inputs missing": {},
    "unknown column": {"inputs": {"topic": "a", "x": "b"}},
    "a number as input": {"inputs": {"topic": [1]}},
    "unknown field": {"inputs": {"topic": "a"}, "speed": 1},
    "unknown rule": {"inputs": {"topic": "a"}, "options": {"rules": {"magic": True}}},
    "no time": {"inputs": {"topic": "a"}, "options": {"timeout_s": 0}},
    "bad id": {"inputs": {"topic": "a"}, "run": "../x"},
    "empty salt": {"inputs": {"topic": "a"}, "cache_salt": ""},
    "too many rows": {"inputs": {"topic": [""] * 600_000}},
}


@pytest.mark.parametrize("name", BAD_RUNS)
def test_a_malformed_run_is_refused_before_anything_runs(tmp_path, name):
    async def main():
        async with serving(tmp_path) as client:
            path = await register(client, graph())
            answer = await client.post(path + "/runs", json=BAD_RUNS[name])
            assert answer.status_code == 400 and answer.json()["error"]["message"]
            assert (await client.get(path + "/runs")).json()["data"] == []
            assert client.engine.requests == []

    run(main())


def doubling(kind, rounds=60):
    """A plan of a few kilobytes that stands for 2^60 rows, or characters."""
    operators = [{"type": "input", "name": "x0", "column": "c"}]
    for number in range(rounds):
        source = f"x{number}"
        reference = {"type": "reference", "operator": source, "choice": 0}
        grown = {"sources": [source] * 2} if kind == "concat" else {"text": [reference] * 2}
        operators.append({"type": kind, "name": f"x{number + 1}", **grown})
    operators.append({"type": "output", "name": "out", "source": f"x{rounds}"})
    return {"version": 1, "operators": operators}


@pytest.mark.parametrize("kind", ["concat", "format"])
def test_a_small_plan_that_stands_for_endless_work_is_refused(tmp_path, kind):
    async def main():
        async with serving(tmp_path) as client:
            answer = await client.post("/v1/workflows", json={"plan": doubling(kind)})
            assert answer.status_code == 200, answer.text
            path = f"/v1/workflows/{answer.json()['id']}/runs"
            answer = await client.post(path, json={"inputs": {"c": ["abc"]}})
            assert answer.status_code == 400 and "at most" in answer.json()["error"]["message"]

    run(main())


def test_a_workflow_deleted_while_it_is_read_is_unknown(tmp_path, monkeypatch):
    async def main():
        async with serving(tmp_path) as client:
            path = await register(client, graph())
            store = client.service.workflows
            plan = store.plan

            def read_and_lose(workflow):
                found = plan(workflow)
                store.delete(workflow)
                return found

            monkeypatch.setattr(store, "plan", read_and_lose)
            assert (await client.get(path)).status_code == 404
            # The other way round: registered anew in between.
            monkeypatch.setattr(store, "plan", plan)
            await register(client, graph())
            monkeypatch.setattr(store, "info", lambda workflow: None)
            assert (await client.get(path)).status_code == 404

    run(main())


def test_an_oversized_body_is_413(tmp_path, monkeypatch):
    monkeypatch.setattr(workflow_routes, "MAX_WORKFLOW_BYTES", 100)

    async def main():
        async with serving(tmp_path) as client:
            answer = await client.post("/v1/workflows", content=b" " * 101)
            assert answer.status_code == 413 and "100 bytes" in answer.json()["error"]["message"]

    run(main())


def test_unknown_things_are_404_in_the_openai_shape(tmp_path):
    async def main():
        async with serving(tmp_path) as client:
            path = await register(client, graph())
            for where in ("/v1/workflows/x", "/v1/workflows/x/runs", path + "/runs/x"):
                error = (await client.get(where)).json()["error"]
                assert error["code"] == 404 and error["type"] == "Not Found"
            for rest in ("/events", "/explain"):
                assert (await client.get(path + "/runs/x" + rest)).status_code == 404
            assert (await client.delete(path + "/runs/x")).status_code == 404
            del client.app.state.helium_workflows
            answer = await client.get("/v1/workflows")
            assert answer.status_code == 503 and "--helium-state-dir" in answer.text

    run(main())
