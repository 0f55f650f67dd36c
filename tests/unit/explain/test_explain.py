from __future__ import annotations

import html.parser
import json
import os
from pathlib import Path

import pytest

from benchmarks.workflows import WORKFLOWS
from helium.errors import PlanError
from helium.explain import FORMATS, Measured, explain
from helium.optimizer.driver import BatchOptimization, optimize
from helium.plan.logical_plan import LogicalPlan
from helium.planner import WorkflowPlan, plan_workflow
from helium.templates import WordTokenizer

_GOLDEN = Path(__file__).parents[2] / "golden" / "explain"


def _planned(name: str) -> tuple[LogicalPlan, BatchOptimization, WorkflowPlan]:
    compiled = WORKFLOWS[name](size=17, scale=0.25).compile()
    done = optimize(compiled)
    return compiled.plan, done, plan_workflow(done.compiled, WordTokenizer(), workflow=name)


@pytest.fixture(scope="module")
def debate() -> tuple[LogicalPlan, BatchOptimization, WorkflowPlan]:
    return _planned("debate-mmlu")


@pytest.mark.parametrize(
    "name",
    [
        "mapreduce-mmlu",
        "debate-mmlu",
        "reflection-tatqa",
        "iterative-amazon",
        "parallel-amazon",
        "trading-8b",
    ],
)
def test_text_of_the_six_workflows_is_golden(name: str) -> None:
    original, done, plan = _planned(name)
    found = explain(plan, passes=done.passes, original=original, show_times=False)
    path = _GOLDEN / f"{name}.txt"
    if os.environ.get("HELIUM_UPDATE_GOLDEN") == "1":
        path.write_text(found)
    assert path.read_text() == found


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_names_every_operator(
    format: str, debate: tuple[LogicalPlan, BatchOptimization, WorkflowPlan]
) -> None:
    original, done, plan = debate
    shown = explain(plan, format, passes=done.passes, original=original)
    for operator in done.compiled.plan.llm_operators:
        assert operator.name in shown


def test_analyze_puts_measured_figures_beside_the_predicted(
    debate: tuple[LogicalPlan, BatchOptimization, WorkflowPlan],
) -> None:
    _, _, plan = debate
    name, prediction = next(iter(plan.predictions.items()))
    twice = round(2 * prediction.prefill_tokens)
    measured = {name: Measured(17, twice, 1_234, 5_678, 9.25)}
    text = explain(plan, analyze=measured)
    (line,) = [line for line in text.splitlines() if f"{twice} (+100%)" in line]
    assert name in line and "9.2" in line
    report = json.loads(explain(plan, "json", analyze=measured))
    (row,) = [row for row in report["schedule"] if row["operator"] == name]
    assert row["measured"]["cached_tokens"] == 1_234
    assert "1,234" in explain(plan, "html", analyze=measured)
    with pytest.raises(PlanError, match="'nobody'"):
        explain(plan, analyze={"nobody": measured[name]})


def test_rules_show_what_each_one_left() -> None:
    original, done, plan = _planned("mapreduce-mmlu")
    report = json.loads(explain(plan, "json", passes=done.passes, original=original))
    counts = [rule["num_llm_operators"] for rule in report["rules"]]
    assert counts[0] == 15 and counts[-1] == 8  # each role is there twice
    assert report["rules"][-1]["num_calls"] == plan.predictions["summarizer"].num_calls * 8


def test_json_agrees_with_the_plan(
    debate: tuple[LogicalPlan, BatchOptimization, WorkflowPlan],
) -> None:
    _, _, plan = debate
    report = json.loads(explain(plan, "json"))
    assert report["makespan"] == plan.makespan
    assert len(report["templates"]) == plan.lowering.tree.num_nodes - 1
    assert [row["operator"] for row in report["schedule"]] == [
        name for sequence in plan.sequences for name in sequence.operators
    ]


class _Strict(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_balanced_and_fetches_nothing(
    debate: tuple[LogicalPlan, BatchOptimization, WorkflowPlan],
) -> None:
    original, done, plan = debate
    page = explain(plan, "html", passes=done.passes, original=original)
    parser = _Strict()
    parser.feed(page)
    assert parser.open == []
    assert parser.links == []
    assert "url(" not in page and "<script" not in page


def test_names_are_escaped(debate: tuple[LogicalPlan, BatchOptimization, WorkflowPlan]) -> None:
    _, done, _ = debate
    plan = plan_workflow(done.compiled, WordTokenizer(), workflow='<u>"x"\\')
    assert "<u>" not in explain(plan, "html")
    assert 'digraph "<u>\\"x\\"\\\\" {' in explain(plan, "dot")


def test_an_unknown_format_is_refused(
    debate: tuple[LogicalPlan, BatchOptimization, WorkflowPlan],
) -> None:
    with pytest.raises(PlanError, match="unknown format 'pdf'"):
        explain(debate[2], "pdf")


def test_a_plan_explains_itself(
    debate: tuple[LogicalPlan, BatchOptimization, WorkflowPlan],
) -> None:
    _, done, plan = debate
    assert plan.explain(passes=done.passes, show_times=False) == explain(
        plan, passes=done.passes, show_times=False
    )
    with pytest.raises(PlanError, match="unknown format"):
        plan.explain("pdf")
