import pytest

from helium.plan.operators import (
    Concat,
    Data,
    Format,
    Input,
    Lambda,
    Llm,
    Message,
    Output,
    Reference,
    Slice,
)
from helium.plan.rewrite import replace_reads, replace_texts, texts
from helium.plan.text import canonical_text, is_canonical, render, text

READERS = [
    Format("f", text=text("x", Reference("a", 1))),
    Lambda("f", function="g", arguments=("a", "a")),
    Llm("f", messages=(Message("user", text(Reference("a"))),), history="a"),
    Llm("f", prompt=text(Reference("a"))),
    Slice("f", source="a", stop=3),
    Concat("f", sources=("a", "a")),
    Output("f", source="a", key="k"),
]


@pytest.mark.parametrize("operator", READERS, ids=lambda op: type(op).__name__)
def test_every_field_that_holds_a_name_is_replaced(operator):
    other = replace_reads(operator, {"a": "b"})
    assert operator.reads == ("a",)
    assert other.reads == ("b",)
    assert replace_reads(other, {"b": "a"}) == operator


@pytest.mark.parametrize(
    "operator",
    [*READERS, Input("f", column="a"), Data("f", values=("a",))],
    ids=lambda op: type(op).__name__,
)
def test_nothing_to_replace_returns_the_operator_itself(operator):
    assert replace_reads(operator, {"other": "b"}) is operator
    assert replace_texts(operator, lambda parts: parts) is operator


def test_texts_are_in_prompt_order():
    messages = (Message("system", text("one")), Message("user", text("two")))
    assert texts(Llm("f", messages=messages)) == (text("one"), text("two"))


def test_canonical_text_joins_and_drops():
    raw = (*text("a"), *text("b"), Reference("q"), *text("c"), *text("d"))
    assert not is_canonical(raw)
    assert canonical_text(raw) == text("ab", Reference("q"), "cd")
    assert is_canonical(canonical_text(raw))
    assert render(canonical_text(raw), lambda reference: f"<{reference.operator}>") == "ab<q>cd"
    assert text("", "") == ()
