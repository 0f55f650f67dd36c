"""``vllm serve --helium`` as a user meets it: the unmodified ``openai`` client and raw HTTP."""

import json
import urllib.error
import urllib.request

import msgspec
import openai
import pytest

from helium.protocol import MAX_PLAN_BYTES, EnginePlan, PlanOperator, WorkflowContext

pytestmark = pytest.mark.engine

MESSAGES = [{"role": "user", "content": "What grows in a garden?"}]
PLAN = EnginePlan(
    version=1,
    workflow="garden",
    operators=(PlanOperator(name="ask", rank=0), PlanOperator(name="tell", rank=1, reads=("ask",))),
)
CONTEXT = msgspec.to_builtins(WorkflowContext(plan=PLAN.digest(), run="r1", operator="ask"))


@pytest.fixture(scope="module")
def client(helium_server):
    return openai.OpenAI(base_url=helium_server.base_url + "/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def registered(helium_server):
    status, body = send(helium_server, "POST", "/v1/helium/plans", PLAN.to_json())
    assert (status, body["digest"], body["num_operators"]) == (200, PLAN.digest(), 2)
    return body["digest"]


def send(server, method, path, body=None, headers=None):
    """Sends raw bytes and returns (status, parsed body)."""
    request = urllib.request.Request(
        server.base_url + path,
        data=body,
        method=method,
        headers={"content-type": "application/json", **(headers or {})},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")


def chat(client, **extra):
    return client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=8, temperature=0, **extra
    )


def test_the_openai_client_works_without_a_context(client):
    answer = chat(client)
    assert answer.choices[0].message.content
    assert "helium" not in answer.model_extra
    assert answer.usage.prompt_tokens_details.cached_tokens is not None


def test_a_context_never_changes_the_answer(client, registered):
    plain = chat(client).choices[0].message.content
    planned = chat(client, extra_body={"workflow": CONTEXT})
    assert planned.choices[0].message.content == plain
    report = planned.model_extra["helium"]
    cache = report.pop("prefix_cache")
    assert report == {"plan": registered, "run": "r1", "planned": True}
    assert cache["hit_tokens"] == planned.usage.prompt_tokens_details.cached_tokens
    assert cache["hit_tokens"] + cache["miss_tokens"] == planned.usage.prompt_tokens
    assert isinstance(cache["reason"], str)


def test_metrics_count_hit_and_missed_tokens_by_operator(client, helium_server, registered):
    def counted():
        with urllib.request.urlopen(helium_server.base_url + "/metrics", timeout=120) as answer:
            lines = answer.read().decode().splitlines()
        name = "vllm:helium_prefix_cache_"
        assert any(line.startswith(name + 'nodes{engine="0"}') for line in lines)
        ours = [line for line in lines if 'operator="ask"' in line and 'workflow="garden"' in line]
        return {
            kind: sum(
                float(line.rsplit(" ", 1)[1]) for line in ours if line.startswith(name + kind)
            )
            for kind in ("hit_tokens_total", "miss_tokens_total")
        }

    before = counted()
    usage = chat(client, extra_body={"workflow": CONTEXT}).usage
    num_cached = usage.prompt_tokens_details.cached_tokens
    after = counted()
    assert after["hit_tokens_total"] - before["hit_tokens_total"] == num_cached
    num_missed = after["miss_tokens_total"] - before["miss_tokens_total"]
    assert num_missed == usage.prompt_tokens - num_cached


def test_completions_and_responses_take_a_context(client, registered):
    extra = {"workflow": CONTEXT}
    completion = client.completions.create(
        model="tiny", prompt="A garden", max_tokens=8, temperature=0, extra_body=extra
    )
    assert completion.choices[0].text and completion.model_extra["helium"]["planned"] is True
    response = client.responses.create(
        model="tiny", input="A garden", max_output_tokens=8, temperature=0, extra_body=extra
    )
    assert response.output_text and response.model_extra["helium"]["planned"] is True
    assert response.usage.input_tokens_details.cached_tokens is not None


def test_streams_give_the_same_text_and_one_report(client, registered):
    whole = chat(client).choices[0].message.content
    chunks = list(chat(client, stream=True, extra_body={"workflow": CONTEXT}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    reports = [chunk.model_extra["helium"] for chunk in chunks if "helium" in chunk.model_extra]
    assert [report["planned"] for report in reports] == [True]
    pieces = list(
        client.completions.create(
            model="tiny", prompt="x", max_tokens=4, stream=True, extra_body={"workflow": CONTEXT}
        )
    )
    assert [
        piece.model_extra["helium"]["planned"] for piece in pieces if "helium" in piece.model_extra
    ] == [True]
    events = list(
        client.responses.create(
            model="tiny",
            input="x",
            max_output_tokens=4,
            stream=True,
            extra_body={"workflow": CONTEXT},
        )
    )
    assert events[-1].response.model_extra["helium"]["planned"] is True


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"plan": "0" * 64}, "the plan is not registered"),
        ({"operator": "ghost"}, "operator 'ghost' is not in the plan"),
    ],
)
def test_an_unknown_plan_or_operator_gets_service_and_a_note(client, registered, change, note):
    answer = chat(client, extra_body={"workflow": CONTEXT | change})
    assert answer.choices[0].message.content == chat(client).choices[0].message.content
    report = answer.model_extra["helium"]
    assert report["planned"] is False and note in report["note"]


def test_several_choices_and_prompts_carry_one_report(client, registered):
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=8, n=3, extra_body={"workflow": CONTEXT}
    )
    assert len(answer.choices) == 3 and answer.model_extra["helium"]["planned"] is True
    batch = client.completions.create(
        model="tiny", prompt=["a", "b"], max_tokens=2, extra_body={"workflow": CONTEXT}
    )
    assert len(batch.choices) == 2 and batch.model_extra["helium"]["planned"] is True


def test_a_second_call_reports_its_cached_tokens(client):
    long = [{"role": "user", "content": "tomatoes and beans " * 20}]
    counts = [
        client.chat.completions.create(
            model="tiny", messages=long, max_tokens=2
        ).usage.prompt_tokens_details.cached_tokens
        for _ in range(2)
    ]
    assert counts[0] < counts[1]


BAD_CONTEXTS = {
    "a string": "plan",
    "a list": [],
    "a number": 7,
    "a bool": True,
    "empty": {},
    "no plan": {"run": "r", "operator": "o"},
    "no run": {"plan": "0" * 64, "operator": "o"},
    "no operator": {"plan": "0" * 64, "run": "r"},
    "plan too short": CONTEXT | {"plan": "abc"},
    "plan not hex": CONTEXT | {"plan": "g" * 64},
    "plan null": CONTEXT | {"plan": None},
    "run empty": CONTEXT | {"run": ""},
    "run too long": CONTEXT | {"run": "r" * 257},
    "run a number": CONTEXT | {"run": 3},
    "operator a list": CONTEXT | {"operator": ["ask"]},
    "row negative": CONTEXT | {"row": -1},
    "row a float": CONTEXT | {"row": 0.5},
    "row huge": CONTEXT | {"row": 10**30},
    "row text": CONTEXT | {"row": "0"},
    "rank negative": CONTEXT | {"rank": -5},
    "rank a bool": CONTEXT | {"rank": False},
    "lengths negative": CONTEXT | {"segment_lengths": [3, -1]},
    "lengths too many": CONTEXT | {"segment_lengths": [1] * 1025},
    "lengths nested": CONTEXT | {"segment_lengths": [[1]]},
    "version zero": CONTEXT | {"version": 0},
    "version text": CONTEXT | {"version": "1"},
    "unknown field": CONTEXT | {"tenant": "other"},
    "too large": CONTEXT | {"run": "r" * 20_000},
}


@pytest.mark.parametrize("name", BAD_CONTEXTS)
def test_a_malformed_context_is_refused_at_the_edge(helium_server, name):
    context = BAD_CONTEXTS[name]
    body = {"model": "tiny", "max_tokens": 2, "workflow": context}
    for path, rest in (
        ("/v1/chat/completions", {"messages": MESSAGES}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/responses", {"input": "x"}),
    ):
        payload = body | rest
        if path == "/v1/responses":
            payload["max_output_tokens"] = payload.pop("max_tokens")
        status, answer = send(helium_server, "POST", path, json.dumps(payload).encode())
        assert status == (413 if name == "too large" else 400), answer
        assert "workflow" in answer["error"]["message"]
    assert helium_server.is_healthy()


GOOD = json.loads(PLAN.to_json())
BAD_PLANS = {
    "no body": b"",
    "not JSON": b"{",
    "not UTF-8": b"\xff\xfe\x00",
    "a list": b"[]",
    "null": b"null",
    "no version": json.dumps({k: v for k, v in GOOD.items() if k != "version"}).encode(),
    "other version": json.dumps(GOOD | {"version": 99}).encode(),
    "no workflow": json.dumps({k: v for k, v in GOOD.items() if k != "workflow"}).encode(),
    "unknown field": json.dumps(GOOD | {"owner": "me"}).encode(),
    "operators an object": json.dumps(GOOD | {"operators": {}}).encode(),
    "operator without a name": json.dumps(GOOD | {"operators": [{"rank": 0}]}).encode(),
    "operator twice": json.dumps(GOOD | {"operators": GOOD["operators"][:1] * 2}).encode(),
    "reads a ghost": json.dumps(
        GOOD | {"operators": [{"name": "a", "rank": 0, "reads": ["ghost"]}]}
    ).encode(),
    "rank negative": json.dumps(GOOD | {"operators": [{"name": "a", "rank": -1}]}).encode(),
    "NaN output": json.dumps(
        GOOD | {"operators": [{"name": "a", "rank": 0, "output_tokens": float("nan")}]}
    ).encode(),
    "no root": json.dumps(GOOD | {"templates": []}).encode(),
    "parent after child": json.dumps(GOOD | {"templates": [{"parent": 0}, {"parent": 2}]}).encode(),
    "path off the tree": json.dumps(
        GOOD | {"operators": [{"name": "a", "rank": 0, "template": [5]}]}
    ).encode(),
    "deeply nested": b"[" * 100_000,
    "too large": b" " * (MAX_PLAN_BYTES + 1),
}


@pytest.mark.parametrize("name", BAD_PLANS)
def test_a_malformed_plan_is_refused_at_the_edge(helium_server, name):
    status, answer = send(helium_server, "POST", "/v1/helium/plans", BAD_PLANS[name])
    assert status == (413 if name == "too large" else 400), answer
    assert answer["error"]["message"]
    assert helium_server.is_healthy()


def test_the_client_cannot_set_the_engines_key_itself(helium_server):
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 2, "vllm_xargs": {"helium": "x"}}
    status, answer = send(helium_server, "POST", "/v1/chat/completions", json.dumps(body).encode())
    assert status == 200 and "helium" not in answer


def test_plans_are_listed_dropped_and_then_unknown(helium_server, client):
    other = msgspec.structs.replace(PLAN, workflow="orchard")
    send(helium_server, "POST", "/v1/helium/plans", other.to_json())
    _, listed = send(helium_server, "GET", "/v1/helium/plans")
    assert other.digest() in [plan["digest"] for plan in listed["data"]]
    status, body = send(helium_server, "DELETE", f"/v1/helium/plans/{other.digest()}")
    assert (status, body["deleted"]) == (200, True)
    status, body = send(helium_server, "DELETE", f"/v1/helium/plans/{other.digest()}")
    assert status == 404 and "is registered" in body["error"]["message"]
    answer = chat(client, extra_body={"workflow": CONTEXT | {"plan": other.digest()}})
    assert answer.model_extra["helium"]["planned"] is False


def test_status_tells_configuration_and_counts(helium_server):
    status, body = send(helium_server, "GET", "/v1/helium/status")
    engine = body["engines"][0]
    assert status == 200
    assert engine["config"]["order"] == "row" and engine["plan_order"] is True
    assert engine["num_running"] == engine["num_waiting"] == 0
