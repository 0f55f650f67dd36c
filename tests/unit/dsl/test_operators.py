import pytest

from helium import graphs, ops
from helium.errors import WorkflowError
from helium.plan.operators import Data, Format, Lambda, Literal, Llm, Reference, Sampling
from helium.plan.text import text


def built(node):
    """The operator a node becomes, in a graph of its own."""
    return graphs.build({"out": node}).plan.operators[-2]


def test_fmt_fills_positional_numbered_and_named_holes():
    a, b = ops.placeholder("a"), ops.placeholder("b")
    assert built(ops.fmt("{} {x} {{}} {}", a, "lit", x=b)).text == text(
        Reference("a"), " ", Reference("b"), " {} lit"
    )
    assert built(ops.fmt("{1}{0}{1}", a, b)).text == text(
        Reference("b"), Reference("a"), Reference("b")
    )


@pytest.mark.parametrize(
    ("template", "args", "message"),
    [
        ("{} {}", 1, "hole '' without an operand; got 1 positional"),
        ("{x}", 1, "hole 'x' without an operand"),
        ("none", 1, r"no hole for the operands \[0\]"),
        ("{:>5}", 1, "only plain holes work"),
        ("{!r}", 1, "only plain holes work"),
        ("{0.attr}", 1, "without an operand"),
        ("{", 0, "is not a format string"),
    ],
)
def test_a_template_that_does_not_fit_is_refused(template, args, message):
    nodes = [ops.placeholder("q")] * args
    with pytest.raises(WorkflowError, match=message):
        ops.fmt(template, *nodes)


def test_braces_in_messages_are_plain_text():
    call = built(ops.llm([ops.Msg("user", "{not a hole}")]))
    assert call.messages[0].content == (Literal("{not a hole}"),)


def test_data_is_a_batch_or_a_scalar():
    assert built(ops.data(["a", "b"])) == Data("data", values=("a", "b"))
    assert built(ops.data("a")) == Data("data", values=("a",), is_scalar=True)
    with pytest.raises(WorkflowError, match="data has a int in row 1"):
        ops.data(["a", 1])


def test_llm_takes_options_over_a_base_and_stop_as_string():
    base = Sampling(max_tokens=5, temperature=0.5)
    node = ops.llm([ops.Msg("user", "x")], sampling=base, seed=3, stop="END", temperature=1)
    assert built(node).sampling == Sampling(max_tokens=5, temperature=1.0, seed=3, stop=("END",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_token": 5}, "unknown field `max_token`; the options are"),
        ({"max_tokens": "5"}, r"Expected `int \| null`, got `str`"),
        ({"stop": [3]}, "Expected `str`"),
    ],
)
def test_llm_refuses_options_that_are_none(options, message):
    with pytest.raises(WorkflowError, match=message):
        ops.llm([ops.Msg("user", "x")], **options)


def test_llm_refuses_messages_that_are_no_messages():
    with pytest.raises(WorkflowError, match="messages has a str; wrap it"):
        ops.llm(["x"])
    with pytest.raises(WorkflowError, match="made of strings and operators, got int 3"):
        ops.Msg("user", 3)
    with pytest.raises(WorkflowError, match="got NoneType"):
        ops.Msg("user", ["x", None])


def test_llm_carries_history_model_and_completion():
    first = ops.llm([ops.Msg("user", "x")], name="first")
    second = built(ops.llm([ops.Msg("user", "y")], history=first, model="adapter"))
    assert (second.history, second.model) == ("first", "adapter")
    prompt = built(ops.llm(prompt=["Say ", first]))
    assert prompt.prompt == text("Say ", Reference("first"))


def test_several_outputs_must_be_chosen_from():
    draws = ops.llm([ops.Msg("user", "x")], n=2, temperature=1.0, name="draws")
    with pytest.raises(WorkflowError, match=r"<llm 'draws' from .* has 2 outputs per row; put one"):
        ops.fmt("{}", draws)
    with pytest.raises(WorkflowError, match="choice 2 was asked for"):
        draws.choice(2)
    assert built(draws.choice(1)) == Format("format", text=text(Reference("draws", 1)))
    assert built(draws[1:].choice(1)).text == text(Reference("slice", 1))
    single = ops.placeholder("q")
    assert single.choice(0) is single


def test_functions_apply_by_name_or_by_themselves():
    q = ops.placeholder("q")
    assert built(ops.apply("parse", q, name="p")) == Lambda("p", function="parse", arguments=("q",))
    assert built(ops.apply(test_data_is_a_batch_or_a_scalar, q)).name == (
        "test_data_is_a_batch_or_a_scalar"
    )
    with pytest.raises(WorkflowError, match="no stable name"):
        ops.apply(lambda value: value, q)
    with pytest.raises(WorkflowError, match=r"wrap a constant in ops\.data"):
        ops.apply("parse", "constant")


def test_slices_and_sums_read_naturally():
    q = ops.placeholder("q")
    assert built(q[1:5:2]) == built(ops.slice(q, 1, 5, 2))
    assert built("Q: " + q + "?").text == text(Reference("format"), "?")


def test_input_and_format_are_the_paper_names_twins():
    assert ops.placeholder is ops.input
    assert ops.format is ops.fmt
    assert isinstance(ops.llm([ops.Msg("user", "x")]).operator, Llm)
