import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.workflows import WORKFLOWS
from helium.errors import WorkflowError
from helium.plan.logical_plan import LogicalPlan
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
    Sampling,
    Slice,
)
from helium.plan.text import text


def everything():
    """One operator of each kind, with every field set somewhere."""
    sampling = Sampling(
        max_tokens=8, temperature=0.5, seed=1, stop=("x",), n=2, structured={"choice": ["b", "a"]}
    )
    return LogicalPlan(
        (
            Input("q", column="question"),
            Data("tone", values=('be "brief"',), is_scalar=True),
            Data("rows", values=("a", "b", "c", "d")),
            Format("prompt", text=text("{Q}: ", Reference("q"))),
            Llm("draft", messages=(Message("user", text(Reference("prompt"))),)),
            Llm(
                "final",
                messages=(Message("user", text("As ", Reference("tone"))),),
                history="draft",
                sampling=sampling,
                model="adapter",
            ),
            Llm("completion", prompt=text("x" * 200)),
            Lambda("parsed", function="parse", arguments=("final", "q")),
            Slice("some", source="final", start=1, step=2),
            Concat("both", sources=("some", "final")),
            Output("out", source="both", key="answer"),
            Output("parsed_out", source="parsed"),
        )
    )


def test_text_has_one_line_per_operator():
    assert everything().to_text(max_text=20).splitlines() == [
        "q = input question",
        'tone = data "be \\"brief\\""',
        'rows = data ["a", "b", "c", ... 1 more]',
        'prompt = format "{{Q}}: {q}"',
        'draft = llm user: "{prompt}"',
        'final = llm after draft user: "As {tone}" (max_tokens=8, temperature=0.5, seed=1, '
        'stop=["x"], n=2, structured={"choice": ["b", "a"]}, model=adapter)',
        'completion = llm "xxxxxxxx...xxxxxxxx"',
        "parsed = lambda parse(final, q)",
        "some = slice final[1::2]",
        "both = concat some, final",
        "out = output both as answer",
        "parsed_out = output parsed",
    ]


def test_json_round_trip_of_every_field():
    plan = everything()
    assert LogicalPlan.from_json(plan.to_json()) == plan
    assert LogicalPlan.from_json(plan.to_json().decode()) == plan


def test_json_form_is_stable():
    plan = LogicalPlan((Input("q", column="c"), Output("out", source="q")))
    assert plan.to_json() == (
        b'{"operators":[{"type":"input","name":"q","column":"c"},'
        b'{"type":"output","name":"out","source":"q","key":"out"}],"version":1}'
    )
    assert plan.digest() == LogicalPlan.from_json(plan.to_json()).digest()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[]", "Expected `object`"),
        (b'{"operators": []}', "missing required field `version`"),
        (b'{"version": 2, "anything": 1}', "`version` is 2, this release reads 1"),
        (b'{"operators": [], "version": 1, "x": 1}', "unknown field `x`"),
        (b'{"operators": [{"type": "loop", "name": "a"}], "version": 1}', "'loop'"),
        (b'{"operators": [{"type": "input", "name": 3}], "version": 1}', "operators"),
        (b'{"operators": [], "version": 1}', "none of its 0 operators"),
    ],
)
def test_bad_json_is_a_workflow_error(raw, message):
    with pytest.raises(WorkflowError, match=message):
        LogicalPlan.from_json(raw)


def test_too_large_json_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr("helium.plan.logical_plan.MAX_PLAN_BYTES", 10)
    with pytest.raises(WorkflowError, match="too large, at most 10"):
        LogicalPlan.from_json(b"x" * 11)


def test_json_with_split_literals_reads_as_the_canonical_plan():
    raw = (
        b'{"operators":[{"type":"format","name":"f","text":[{"type":"literal","text":"a"},'
        b'{"type":"literal","text":""},{"type":"literal","text":"b"}]},'
        b'{"type":"output","name":"out","source":"f"}],"version":1}'
    )
    plan = LogicalPlan.from_json(raw)
    assert plan.by_name["f"] == Format("f", text=text("ab"))
    assert LogicalPlan.from_json(plan.to_json()) == plan


def test_equal_plans_have_equal_hashes_and_numbers_one_spelling():
    def plan(temperature):
        call = Llm("a", prompt=text("x"), sampling=Sampling(temperature=temperature, seed=1))
        return LogicalPlan((call, Output("out", source="a")))

    assert plan(1) == plan(1.0)
    assert hash(plan(1)) == hash(plan(1.0))
    assert plan(1).digest() == plan(1.0).digest()
    assert plan(1) != plan(0.5)
    assert plan(1) != "plan"


def test_order_of_a_schema_is_part_of_the_plan():
    def plan(structured):
        call = Llm("a", prompt=text("x"), sampling=Sampling(structured=structured))
        return LogicalPlan((call, Output("out", source="a")))

    assert plan({"json": {"a": 1, "b": 2}}) != plan({"json": {"b": 2, "a": 1}})


def test_consumers_columns_and_views():
    plan = everything()
    assert plan.consumers()["final"] == ("parsed", "some", "both")
    assert plan.consumers()["draft"] == ("final",)
    assert plan.columns == ("question",)
    assert [output.key for output in plan.outputs] == ["answer", "parsed_out"]
    assert [operator.name for operator in plan.llm_operators] == ["draft", "final", "completion"]


def test_a_conversation_is_history_then_answer_then_own_messages():
    first = Llm("first", messages=(Message("system", text("s")), Message("user", text("u"))))
    second = Llm("second", messages=(Message("user", text("more")),), history="first")
    third = Llm("third", messages=(Message("user", text("last")),), history="second")
    plan = LogicalPlan((first, second, third, Output("out", source="third")))
    assert plan.conversation("third") == (
        *first.messages,
        Message("assistant", (Reference("first"),)),
        *second.messages,
        Message("assistant", (Reference("second"),)),
        *third.messages,
    )


def test_a_chain_of_thousands_needs_no_recursion():
    calls = [Llm("n0", messages=(Message("user", text("x")),))]
    for index in range(1, 5_000):
        turn = (Message("user", text("y")),)
        calls.append(Llm(f"n{index}", messages=turn, history=f"n{index - 1}"))
    plan = LogicalPlan((*calls, Output("out", source="n4999")))
    plan.validate()
    assert len(plan.conversation("n4999")) == 2 * 5_000 - 1
    assert len(plan.canonical().operators) == 5_001


def test_canonical_form_keeps_two_random_draws_apart():
    def plan(second):
        draw = Sampling(temperature=1.0)
        return LogicalPlan(
            (
                Llm("a", prompt=text("x"), sampling=draw),
                Llm("b", prompt=text("x"), sampling=draw),
                Format("f", text=text(Reference("a"), Reference(second))),
                Output("out", source="f"),
            )
        )

    assert plan("a").canonical() != plan("b").canonical()


def test_graphs_for_other_tools_quote_names():
    plan = LogicalPlan((Input('a"b', column="c"), Output("out", source='a"b')))
    assert '"a\\"b" -> "out";' in plan.to_dot()
    assert "a#quot;b" in plan.to_mermaid()
    assert "n0 --> n1" in plan.to_mermaid()
    assert '"draft" -> "final" [style=dashed];' in everything().to_dot()
    assert "n4 -.-> n5" in everything().to_mermaid()


_BUILD = """
from benchmarks.workflows import WORKFLOWS
from helium.optimizer.driver import optimize
for name, build in WORKFLOWS.items():
    compiled = build(size=2, scale=0.1).compile()
    plan = optimize(compiled).compiled.plan
    print(name, compiled.plan.digest(), plan.digest(), plan.canonical().digest())
"""


def test_plans_have_equal_bytes_in_every_process():
    def digests(seed):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run(
            [sys.executable, "-c", _BUILD],
            cwd=Path(__file__).parents[3],
            env=env,
            capture_output=True,
            text=True,
            check=True,
        )
        return run.stdout

    first = digests("1")
    assert first.count("\n") == len(WORKFLOWS)
    assert all(digests(seed) == first for seed in ("0", "4242"))
