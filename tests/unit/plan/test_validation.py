import pytest

from helium.errors import WorkflowError
from helium.plan.logical_plan import LogicalPlan
from helium.plan.operators import (
    Concat,
    Data,
    Format,
    Input,
    Lambda,
    Literal,
    Llm,
    Message,
    Output,
    Reference,
    Sampling,
    Slice,
)
from helium.plan.text import text

Q = Input("q", column="q")
OUT = Output("out", source="q")
ASK = (Message("user", text(Reference("q"))),)


def llm(name="bad", **fields):
    return Llm(name, **{"messages": ASK, **fields})


def sampled(**fields):
    return llm(sampling=Sampling(**fields))


DRAWS = llm("draws", sampling=Sampling(temperature=1.0, n=2))
COMPLETION = Llm("completion", prompt=text("x"))

INVALID = {
    "has a name of 0 characters": [Input("", column="q")],
    "has a name of 300 characters": [Input("x" * 300, column="q")],
    "'q' has the name of an earlier operator": [Q, Data("q", values=("x",), is_scalar=True)],
    r"'bad' reads 'p', which no operator produces; available: \['q'\]": [
        Q,
        Slice("bad", source="p"),
    ],
    "'bad' reads 'late', which comes after it": [
        Slice("bad", source="late"),
        Input("late", column="q"),
    ],
    "'bad' reads itself": [Slice("bad", source="bad")],
    "'bad' reads 'out', which is an output; read its source 'q'": [
        Q,
        OUT,
        Slice("bad", source="out"),
    ],
    "'bad' names no column": [Input("bad", column="")],
    "'bad' is a scalar with 2 values": [Data("bad", values=("a", "b"), is_scalar=True)],
    "'bad' names no function": [Q, Lambda("bad", function="", arguments=("q",))],
    "'bad' has step 0": [Q, Slice("bad", source="q", step=0)],
    "'bad' joins no operators": [Concat("bad", sources=())],
    "'bad' joins operators with different numbers of outputs": [
        Q,
        DRAWS,
        Concat("bad", sources=("q", "draws")),
    ],
    "'bad' needs either messages or a prompt, got neither": [Llm("bad")],
    "'bad' needs either messages or a prompt, got both": [Q, llm(prompt=text("x"))],
    "'bad' has a message without a role": [Q, llm(messages=(Message("", text("x")),))],
    "'bad' names the model ''": [Q, llm(model="")],
    "'bad' continues the conversation of 'q', which is not an LLM": [Q, llm(history="q")],
    "'bad' continues the conversation of 'completion', which is not": [
        Q,
        COMPLETION,
        llm(history="completion"),
    ],
    "'bad' has a prompt and a history 'first'": [
        Q,
        llm("first"),
        Llm("bad", prompt=text("x"), history="first"),
    ],
    "'bad' continues the conversation of 'draws', which has n=2": [Q, DRAWS, llm(history="draws")],
    "'bad' holds an empty literal or two in a row": [
        Format("bad", text=(Literal("a"), Literal("b")))
    ],
    "'bad' reads choice 2 of 'draws', which has 2 output": [
        Q,
        DRAWS,
        Format("bad", text=text(Reference("draws", 2))),
    ],
    "'bad' reads choice -1 of 'q'": [Q, Format("bad", text=text(Reference("q", -1)))],
    "max_tokens=0": [Q, sampled(max_tokens=0)],
    "temperature=-1.0": [Q, sampled(temperature=-1)],
    "temperature=nan": [Q, sampled(temperature=float("nan"))],
    "top_p=0.0": [Q, sampled(top_p=0)],
    "top_k=-1": [Q, sampled(top_k=-1)],
    "min_p=2.0": [Q, sampled(min_p=2)],
    "presence_penalty=3.0": [Q, sampled(presence_penalty=3)],
    "frequency_penalty=-3.0": [Q, sampled(frequency_penalty=-3)],
    "repetition_penalty=0.0": [Q, sampled(repetition_penalty=0)],
    "min_tokens=6 with max_tokens=5": [Q, sampled(min_tokens=6, max_tokens=5)],
    "an empty stop string": [Q, sampled(stop=("",))],
    "n=0": [Q, sampled(n=0)],
    "n=2 with temperature 0": [Q, sampled(n=2)],
    "result key 'answer', which output 'one' has too": [
        Q,
        Output("one", source="q", key="answer"),
        Output("two", source="q", key="answer"),
    ],
}


@pytest.mark.parametrize("message", INVALID)
def test_an_invalid_plan_names_operator_and_reason(message):
    operators = INVALID[message]
    if not any(isinstance(operator, Output) for operator in operators):
        operators = [*operators, Output("out", source=operators[0].name)]
    with pytest.raises(WorkflowError, match=message):
        LogicalPlan(tuple(operators)).validate()


def test_a_plan_needs_an_output():
    with pytest.raises(WorkflowError, match="none of its 1 operators is an output"):
        LogicalPlan((Q,)).validate()


def test_a_plan_has_at_most_65536_operators():
    operators = tuple(Input(str(index), column="q") for index in range(65_537))
    with pytest.raises(WorkflowError, match="65537 operators are too many"):
        LogicalPlan(operators).validate()


def test_the_message_has_the_line_where_the_operator_was_written():
    plan = LogicalPlan((Q, Slice("bad", source="q", step=0), OUT))
    with pytest.raises(WorkflowError, match=r"operator 'bad' \(flow.py:7\) has step 0"):
        plan.validate({"bad": "flow.py:7"})


def test_widths_pass_through_slices_and_concatenations():
    plan = LogicalPlan(
        (
            Q,
            DRAWS,
            Slice("some", source="draws", stop=1),
            Concat("more", sources=("some", "draws")),
            Format("one", text=text(Reference("more", 1))),
            Output("out", source="more"),
            Output("out2", source="one"),
        )
    )
    plan.validate()
    assert [plan.widths[name] for name in ("q", "some", "more", "one", "out")] == [1, 2, 2, 1, 2]
