"""The two messages between planner and engine: round trip, bounds, clear errors."""

import json

import msgspec
import pytest

from helium.errors import PlanError
from helium.protocol import (
    MAX_CONTEXT_BYTES,
    EnginePlan,
    PlanOperator,
    TemplateNode,
    WorkflowContext,
    decode_engine_plan,
    decode_workflow_context,
)

DIGEST = "0" * 64


def make_plan() -> EnginePlan:
    return EnginePlan(
        version=1,
        workflow="summaries",
        operators=(
            PlanOperator(name="draft", rank=0, num_calls=3, output_tokens=12.5, template=(1, 2)),
            PlanOperator(name="final", rank=1, template=(1,), reads=("draft",)),
        ),
        templates=(
            TemplateNode(parent=0),
            TemplateNode(parent=0, num_tokens=3, token_ids=(5, 6, 7), num_uses=6),
            TemplateNode(parent=1, num_tokens=40),
        ),
    )


def test_plan_survives_json_and_keeps_its_digest():
    plan = make_plan()
    again = decode_engine_plan(plan.to_json())
    assert again == plan
    assert again.digest() == plan.digest()
    assert decode_engine_plan(json.loads(plan.to_json())) == plan


def test_a_whole_number_of_tokens_does_not_change_the_digest_on_the_way():
    plan = EnginePlan(1, "w", (PlanOperator(name="a", rank=0, output_tokens=60),))
    assert decode_engine_plan(plan.to_json()).digest() == plan.digest()


def test_digest_changes_with_any_rank():
    plan = make_plan()
    moved = msgspec.structs.replace(plan.operators[0], rank=7)
    other = msgspec.structs.replace(plan, operators=(moved, plan.operators[1]))
    assert other.digest() != plan.digest()


def test_context_survives_json():
    context = WorkflowContext(
        plan=DIGEST, run="r1", operator="draft", row=4, segment_lengths=(3, 40)
    )
    assert decode_workflow_context(msgspec.json.encode(context)) == context


def change(**fields):
    raw = json.loads(make_plan().to_json())
    raw.update(fields)
    return raw


def change_operator(**fields):
    raw = json.loads(make_plan().to_json())
    raw["operators"][1].update(fields)
    return raw


def change_node(index, **fields):
    raw = json.loads(make_plan().to_json())
    raw["templates"][index].update(fields)
    return raw


BAD_PLANS = {
    "other version": (change(version=2), "speaks 1"),
    "version missing": ({"workflow": "w", "operators": []}, "version"),
    "unknown field": (change(colour="red"), "colour"),
    "no name": (change(workflow=""), "workflow"),
    "operators no list": (change(operators={}), "operators"),
    "negative rank": (change_operator(rank=-1), "operators[1].rank"),
    "rank a string": (change_operator(rank="first"), "operators[1].rank"),
    "rank too large": (change_operator(rank=1 << 60), "operators[1].rank"),
    "negative output": (change_operator(output_tokens=-0.5), "output_tokens"),
    "same name twice": (change_operator(name="draft"), "'draft' twice"),
    "reads unknown": (change_operator(reads=["ghost"]), "'ghost'"),
    "path not a path": (change_operator(template=[2]), "node 2"),
    "path outside": (change_operator(template=[1, 9]), "node 9"),
    "path through the root": (change_operator(template=[0]), "node 0"),
    "root with tokens": (change_node(0, num_tokens=2), "templates[0]"),
    "parent after child": (change_node(1, parent=2), "templates[1].parent"),
    "token count off": (change_node(1, num_tokens=4), "templates[1].num_tokens"),
    "negative token": (change_node(1, token_ids=[5, 6, -7]), "token_ids"),
}


@pytest.mark.parametrize("name", BAD_PLANS)
def test_bad_plan_is_refused_and_the_field_named(name):
    raw, expected = BAD_PLANS[name]
    for form in (raw, json.dumps(raw).encode()):
        with pytest.raises(PlanError) as caught:
            decode_engine_plan(form)
        assert expected in str(caught.value)


BAD_CONTEXTS = {
    "empty": ({}, "plan"),
    "digest too short": ({"plan": "abc", "run": "r", "operator": "o"}, "plan"),
    "digest in capitals": ({"plan": "A" * 64, "run": "r", "operator": "o"}, "plan"),
    "no run": ({"plan": DIGEST, "operator": "o"}, "run"),
    "row negative": ({"plan": DIGEST, "run": "r", "operator": "o", "row": -1}, "row"),
    "row a float": ({"plan": DIGEST, "run": "r", "operator": "o", "row": 1.5}, "row"),
    "row a bool": ({"plan": DIGEST, "run": "r", "operator": "o", "row": True}, "row"),
    "lengths a string": (
        {"plan": DIGEST, "run": "r", "operator": "o", "segment_lengths": "3"},
        "segment_lengths",
    ),
    "lengths too many": (
        {"plan": DIGEST, "run": "r", "operator": "o", "segment_lengths": [1] * 1025},
        "segment_lengths",
    ),
    "version 2": ({"plan": DIGEST, "run": "r", "operator": "o", "version": 2}, "version"),
    "extra": ({"plan": DIGEST, "run": "r", "operator": "o", "salt": "x"}, "salt"),
    "name too long": ({"plan": DIGEST, "run": "r" * 257, "operator": "o"}, "run"),
}


@pytest.mark.parametrize("name", BAD_CONTEXTS)
def test_bad_context_is_refused_and_the_field_named(name):
    raw, expected = BAD_CONTEXTS[name]
    with pytest.raises(PlanError) as caught:
        decode_workflow_context(raw)
    assert expected in str(caught.value)


def test_rank_may_be_null():
    raw = {"plan": DIGEST, "run": "r", "operator": "o", "rank": None}
    assert decode_workflow_context(raw).rank is None


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"\xa0', b'{"plan": 1e999}']
)
def test_broken_json_is_a_plan_error(raw):
    for decode in (decode_engine_plan, decode_workflow_context):
        with pytest.raises(PlanError):
            decode(raw)


def test_oversized_context_is_refused_before_it_is_parsed():
    with pytest.raises(PlanError, match="too large"):
        decode_workflow_context(b" " * (MAX_CONTEXT_BYTES + 1))
