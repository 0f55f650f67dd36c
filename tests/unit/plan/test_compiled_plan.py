import msgspec
import pytest

from helium.errors import WorkflowError
from helium.plan.compiled_plan import CompiledPlan, bind
from helium.plan.logical_plan import LogicalPlan
from helium.plan.operators import (
    Concat,
    Input,
    Lambda,
    Llm,
    Message,
    Output,
    Reference,
    Sampling,
    Slice,
)
from helium.plan.text import text

X = Input("x", column="x")


def ask(name, read, **fields):
    return Llm(name, messages=(Message("user", text(Reference(read))),), **fields)


def plan_of(*operators):
    plan = LogicalPlan((*operators, Output("out", source=operators[-1].name)))
    plan.validate()
    return plan


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({}, r"lacks \['x'\]; expected the columns \['x'\], got \[\]"),
        ({"x": ["a"], "z": ["b"]}, r"has \['z'\], which no operator reads"),
        ({"x": ["a", 3]}, "column 'x' has a int in row 1"),
        ({"x": [b"a"]}, "column 'x' has a bytes in row 0"),
        ({"x": ["a", "\ud800"]}, "column 'x' has text with half a surrogate pair in row 1"),
        ({"x": "\udfff"}, "column 'x' has text with half a surrogate pair as its value"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(batch, message):
    with pytest.raises(WorkflowError, match=message):
        bind(plan_of(X), batch)


def test_an_unregistered_function_is_refused_before_the_run():
    plan = plan_of(X, Lambda("p", function="prase", arguments=("x",)))
    with pytest.raises(WorkflowError, match=r"'p': function 'prase'.*registered: \['parse'\]"):
        bind(plan, {"x": ["a"]}, functions={"parse": str})


def test_lines_of_the_source_are_in_row_errors():
    plan = plan_of(X, Input("y", column="y"), Concat("c", ("x",)), ask("a", "x"))
    both = LogicalPlan(
        (*plan.operators[:-1], ask("b", "y", history="a"), Output("out", source="b"))
    )
    with pytest.raises(WorkflowError, match=r"'b' \(f.py:1\) reads operator 'a' \(f.py:2\) with"):
        bind(both, {"x": ["a"], "y": ["b", "c"]}, sources={"b": "f.py:1", "a": "f.py:2"})


def test_binding_is_json():
    compiled = bind(plan_of(X, ask("a", "x")), {"x": ["a", "b"]})
    compiled = msgspec.structs.replace(compiled, known={"a": {1: ("out",)}})
    again = msgspec.json.decode(msgspec.json.encode(compiled), type=CompiledPlan)
    assert again == compiled
    assert list(again.calls("a")) == [0]


def test_rows_that_no_result_needs_are_not_called():
    compiled = bind(
        plan_of(X, ask("a", "x"), Slice("last", source="a", start=-1), ask("b", "last")),
        {"x": list("abcde")},
    )
    assert list(compiled.calls("a")) == [4]
    assert list(compiled.calls("b")) == [0]


def test_a_known_row_needs_none_of_its_inputs():
    compiled = bind(plan_of(X, ask("a", "x"), ask("b", "a")), {"x": ["p", "q"]})
    compiled = msgspec.structs.replace(compiled, known={"b": {0: ("done",)}})
    assert list(compiled.calls("b")) == [1]
    assert list(compiled.calls("a")) == [1]


def test_a_known_turn_of_a_conversation_still_needs_its_messages():
    first, draft = ask("first", "x"), ask("draft", "first")
    reply = Llm("reply", messages=(Message("user", text("Go on.")),), history="draft")
    compiled = bind(plan_of(X, first, draft, reply), {"x": ["p"]})
    known = msgspec.structs.replace(compiled, known={"draft": {0: ("d",)}})
    assert [list(known.calls(name)) for name in ("first", "draft", "reply")] == [[0], [], [0]]


def test_an_equal_row_needs_its_representative_instead():
    compiled = bind(plan_of(X, ask("a", "x"), Slice("s", source="a", start=2)), {"x": list("pqp")})
    compiled = msgspec.structs.replace(compiled, representatives={"a": (0, 1, 0)})
    assert list(compiled.calls("a")) == [0]


def test_operators_without_readers_are_not_called():
    unused = ask("unused", "x", sampling=Sampling(temperature=1.0))
    compiled = bind(LogicalPlan((X, unused, Output("out", source="x"))), {"x": ["a"]})
    assert list(compiled.calls("unused")) == []
