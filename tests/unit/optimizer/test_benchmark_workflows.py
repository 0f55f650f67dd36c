"""The published shapes, and how many LLM operators are left of them."""

import pytest

from benchmarks.workflows import WORKFLOWS
from benchmarks.workflows.trading import build
from helium.optimizer.driver import Switches, optimize

COUNTS = {
    # name: (operators per row, left as published, left with all agents distinct)
    "mapreduce-mmlu": (15, 8, 15),
    "mapreduce-tatqa": (48, 48, 48),
    "debate-mmlu": (6, 6, 6),
    "debate-tatqa": (36, 36, 36),
    "reflection-tatqa": (24, 24, 24),
    "iterative-amazon": (6, 6, 6),
    "parallel-amazon": (50, 50, 50),
    "trading-4b": (56, 56, 56),
    "trading-8b": (88, 56, 88),
    "trading-12b": (120, 56, 120),
    "trading-16b": (152, 56, 152),
    **{f"sharing-p{number}": (6, 6, 6) for number in range(1, 7)},
}


def test_every_workflow_has_a_count():
    assert COUNTS.keys() == WORKFLOWS.keys()


@pytest.mark.parametrize("name", COUNTS)
def test_llm_operators_before_and_after(name):
    before, published, all_distinct = COUNTS[name]
    for is_distinct, after in ((False, published), (True, all_distinct)):
        compiled = WORKFLOWS[name](size=2, distinct=is_distinct, scale=0.1).compile()
        assert len(compiled.plan.llm_operators) == before
        optimized = optimize(compiled).compiled
        assert len(optimized.plan.llm_operators) == after
        assert sum(len(optimized.calls(op.name)) for op in optimized.plan.llm_operators) == (
            2 * after
        )


@pytest.mark.parametrize("num_rounds", [1, 2, 3])
@pytest.mark.parametrize("num_branches", [1, 4, 17])
def test_trading_has_as_many_operators_as_its_formula_says(num_branches, num_rounds):
    workload = build(size=1, num_branches=num_branches, num_rounds=num_rounds, scale=0.05)
    r, n = num_rounds, num_branches
    assert len(workload.graph.plan.llm_operators) == 18 + 2 * r + 1 + n * (3 * r + 2) + 1
    left = optimize(workload.compile()).compiled.plan.llm_operators
    assert len(left) == 18 + 2 * r + 1 + min(n, 4) * (3 * r + 2) + 1


def test_without_elimination_nothing_merges():
    compiled = WORKFLOWS["trading-8b"](size=1, scale=0.05).compile()
    switches = Switches().without("eliminate_common_subgraphs")
    assert len(optimize(compiled, switches).compiled.plan.llm_operators) == 88


@pytest.mark.parametrize("name", WORKFLOWS)
def test_rows_are_distinct_and_repeatable(name):
    make = WORKFLOWS[name]
    workload = make(size=3)
    assert workload.num_rows == 3
    assert workload.batch == make(size=3).batch
    assert workload.batch != make(size=3, seed=1).batch
    assert all(len(set(values)) == 3 for values in workload.batch.values())


def test_trading_days_differ_in_all_but_the_fundamentals():
    day_1, day_2 = (WORKFLOWS["trading-8b"](size=1, day=day).batch for day in (1, 2))
    same = {column for column in day_1 if day_1[column] == day_2[column]}
    assert same == {"stock", "balance_sheet", "income", "cash_flow", "insider"}


def test_rows_have_the_length_asked_for():
    batch = WORKFLOWS["trading-8b"](size=1).batch
    assert len(batch["price"][0].split()) == 11_867
    batch = WORKFLOWS["iterative-amazon"](size=1, scale=0.1).batch
    assert len(batch["chunk_6"][0].split()) == 68


def test_prompts_have_the_published_number_of_static_words():
    plan = WORKFLOWS["trading-8b"](size=1).graph.plan
    summary = plan.by_name["market_analyst/summary"]
    (system,) = summary.messages[0].content
    assert len(system.text.split()) == 569
    assert len(summary.messages[1].content[0].text.split()) == 75 + len(["Stock:"])
