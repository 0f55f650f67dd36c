from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helium.cost import RooflineModel, TokenStepModel
from helium.errors import PlanError
from helium.plan.compiled_plan import CompiledPlan
from helium.plan.operators import Concat, Data, Input, Operator, Output, Reference, Slice
from helium.planner import BASELINES, WorkflowPlan, plan_workflow
from helium.planner.problem import Problem
from helium.protocol import decode_engine_plan
from helium.templates import WordTokenizer
from tests.unit.templates.plans import chat, compile_plan

Q = Reference("q")


def _plan(compiled: CompiledPlan, **options: object) -> WorkflowPlan:
    return plan_workflow(compiled, WordTokenizer(), **options)  # type: ignore[arg-type]


def _map_reduce(rows: int, agents: int = 3) -> CompiledPlan:
    operators: list[Operator] = [Input("q", column="q")]
    answers: list[str | Reference] = []
    for agent in range(agents):
        operators.append(chat(f"expert{agent}", "Question one: ", Q, f" As expert {agent} answer"))
        answers += [f" Answer {agent} is ", Reference(f"expert{agent}")]
    operators.append(chat("summary", "Sum up these: ", *answers))
    return compile_plan(operators, q=[f"what is {row} plus one" for row in range(rows)])


def _check(plan: WorkflowPlan) -> None:
    """Whatever the options, every call has one place, and every message is valid and agrees."""
    compiled = plan.compiled
    seen = set()
    counted: dict[str, int] = {}
    places = {}
    for operator in compiled.plan.llm_operators:
        for row in compiled.calls(operator.name):
            place = plan.place(operator.name, row)
            assert 0 <= place.engine < plan.num_engines
            assert place not in seen, f"{operator.name} row {row} shares its rank"
            seen.add(place)
            places[operator.name, row] = place
            counted[operator.name] = counted.get(operator.name, 0) + 1
    assert {n: p.num_calls for n, p in plan.predictions.items()} == counted
    total = dict.fromkeys(counted, 0)
    for engine, message in enumerate(plan.engine_plans()):
        assert decode_engine_plan(message.to_json()) == message
        assert [o.rank for o in message.operators] == sorted(o.rank for o in message.operators)
        for told in message.operators:
            total[told.name] += told.num_calls
            ranks = [
                place.rank
                for (name, _), place in places.items()
                if name == told.name and place.engine == engine
            ]
            assert len(ranks) == told.num_calls
            assert told.rank <= min(ranks)
        uses = [0] * len(message.templates)
        for told in message.operators:
            for node in told.template:
                uses[node] += told.num_calls
        assert uses[1:] == [node.num_uses for node in message.templates[1:]]
        for node, told_ranks in plan.next_uses(engine).items():
            assert list(told_ranks) == sorted(told_ranks) and node > 0
    assert total == counted


@pytest.mark.parametrize("policy", ["helium", *BASELINES])
@pytest.mark.parametrize("num_engines", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_every_call_has_one_place(policy: str, num_engines: int, rows: int) -> None:
    plan = _plan(_map_reduce(rows), policy=policy, num_engines=num_engines)
    _check(plan)
    assert plan.policy == policy
    assert plan.is_by_call == (policy != "helium" or rows < 40)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_random_workflow_has_a_valid_plan(data: st.DataObject) -> None:
    rows = data.draw(st.sampled_from([1, 2, 17, 33]))
    operators: list[Operator] = [
        Input("q", column="q"),
        Data("tone", values=("kindly and",), is_scalar=True),
        chat("plan", "Make a plan ", Reference("tone")),
    ]
    names = ["q", "plan"]
    for index in range(data.draw(st.integers(1, 9))):
        reads = data.draw(st.lists(st.sampled_from(names), max_size=3))
        parts = [part for read in reads for part in (f"Part {len(read)} is ", Reference(read))]
        stem = data.draw(st.sampled_from(["", "Answer all of this. ", "Answer none of this. "]))
        talks = [o.name for o in operators if o.name.startswith("op")]
        history = data.draw(st.sampled_from([None, *talks]))
        operators.append(chat(f"op{index}", stem, "go on ", *parts, history=history))
        names.append(f"op{index}")
    compiled = compile_plan(operators, q=[f"row {row}" for row in range(rows)])
    options = {
        "num_engines": data.draw(st.sampled_from([1, 2, 6])),
        "max_calls_by_call": data.draw(st.sampled_from([0, 64])),
        "budget": 200,
    }
    plan = _plan(compiled, **options)
    _check(plan)
    if plan.num_engines == 1:
        for (reader, row), producers in _dependencies(compiled).items():
            for producer in producers:
                assert plan.place(*producer).rank < plan.place(reader, row).rank or (
                    not plan.is_by_call
                )


def _dependencies(compiled: CompiledPlan) -> dict[tuple[str, int], list[tuple[str, int]]]:
    llm = {operator.name for operator in compiled.plan.llm_operators}
    return {
        (name, row): [read for read in compiled.rows.dependencies(name, row) if read[0] in llm]
        for name in llm
        for row in compiled.calls(name)
    }


def test_siblings_that_share_a_row_run_query_by_query() -> None:
    plan = _plan(_map_reduce(100))
    nested, last = plan.sequences
    assert sorted(nested.operators) == ["expert0", "expert1", "expert2"]
    assert last.operators == ("summary",)
    first, second, third = nested.operators
    places = [plan.place(name, row).rank for row in (0, 1) for name in (first, second, third)]
    assert places == list(range(6))
    assert plan.place("summary", 0).rank == 300
    # Two of three experts find the question in the cache.
    prefill = [plan.predictions[name].prefill_tokens for name in nested.operators]
    assert prefill[0] > 2 * prefill[1] and prefill[1] == prefill[2]


def test_few_rows_are_placed_by_operator_and_many_cut_into_slices_where_it_pays() -> None:
    compiled = _map_reduce(2_000, agents=1)
    chain = _plan(compiled, num_engines=4)
    assert chain.num_slices == 4  # a chain cannot use four engines otherwise
    assert {chain.place("summary", row).engine for row in range(2_000)} == {0, 1, 2, 3}
    rows = [row for row in range(2_000) if chain.place("expert0", row).engine == 1]
    assert rows == list(range(500, 1_000))
    alone = _plan(_map_reduce(1, agents=1), num_engines=4)
    assert alone.num_slices == 1


def _workflow_of_rows(rows: int, *, has_advice: bool = False) -> CompiledPlan:
    """Agents that all read a long row, and a chain after them: rows are worth keeping together."""
    operators: list[Operator] = [Input("q", column="q")]
    if has_advice:
        operators.append(Data("tone", values=("kindly",), is_scalar=True))
        operators.append(chat("advice", "Advise ", Reference("tone"), max_tokens=2))
    for agent in range(6):
        question = f" is what expert {agent} is asked"
        operators.append(chat(f"e{agent}", "All experts read: ", Q, question, max_tokens=40))
    read = [part for agent in range(6) for part in (" Answer: ", Reference(f"e{agent}"))]
    read += [Reference("advice")] if has_advice else []
    operators.append(chat("summary", "Sum up: ", *read, max_tokens=40))
    long = "one word and another one and so on for a long while " * 20
    return compile_plan(operators, q=[f"row {row} has {long}" for row in range(rows)])


@pytest.mark.parametrize("num_engines", [2, 4])
def test_rows_that_equal_slices_leave_over_are_placed_by_operator(num_engines: int) -> None:
    rows = 8 * num_engines + 1
    plan = _plan(_workflow_of_rows(rows), num_engines=num_engines, max_calls_by_call=0)
    _check(plan)
    assert plan.num_slices == num_engines and plan.left_over
    for row in range(rows - 1):  # all calls of a row, and as many rows on every engine
        engines = {plan.place(name, row).engine for name in plan.predictions}
        assert engines == {row // 8}
    assert len({plan.place(name, rows - 1).engine for name in plan.predictions}) > 1
    assert "rows left over by operator" in plan.explain()


@pytest.mark.parametrize("rows", [4, 32])
def test_rows_that_divide_leave_none_over(rows: int) -> None:
    plan = _plan(_workflow_of_rows(rows), num_engines=2, max_calls_by_call=0)
    _check(plan)
    assert plan.num_slices == 2 and not plan.left_over


def test_operators_with_fewer_rows_than_slices_are_all_left_over() -> None:
    plan = _plan(_workflow_of_rows(33, has_advice=True), num_engines=4, max_calls_by_call=0)
    assert plan.left_over
    _check(plan)
    sliced = {name for sequence in plan.sequences for name in sequence.operators}
    assert set(plan.predictions) - sliced == {"advice"}
    assert "advice" in plan.explain().partition("Schedule")[2]


def test_what_engines_keep_is_counted_once_each() -> None:
    model = TokenStepModel()
    lowering = _plan(_workflow_of_rows(3), num_engines=2).lowering
    problem = lowering.operator_problem(model, num_engines=2)
    tokens, shared = problem.tree.tokens, problem.tree.shared_tokens
    together = problem.resident_tokens([0] * problem.num_tasks)
    apart = problem.resident_tokens([n % 2 for n in range(problem.num_tasks)])
    summary = problem.tasks[-1].leaf
    alone = Problem([problem.tasks[-1]._replace(producers=())], problem.tree, model)
    # One operator: its static part once, the rest for each of three rows.
    expected = 3 * tokens[summary] - 2 * shared[summary]
    assert alone.resident_tokens([0]) == pytest.approx(expected)
    # The experts' common prompt, static start and row, is computed on both engines.
    ancestor = problem.tree.lowest_common_ancestor(problem.tasks[0].leaf, problem.tasks[1].leaf)
    twice = 3 * tokens[ancestor] - 2 * shared[ancestor]
    assert apart - together == pytest.approx(twice)


def test_a_conversation_stays_where_its_cache_is() -> None:
    operators: list[Operator] = [Input("q", column="q")]
    for agent in range(4):
        question = f"Agent {agent} looks at this: "
        operators.append(chat(f"a{agent}", question, Q, max_tokens=50))
    for agent in range(4):
        operators.append(chat(f"b{agent}", "And now again.", history=f"a{agent}", max_tokens=50))
    compiled = compile_plan(operators, q=["some words " * 200] * 40)
    plan = _plan(compiled, num_engines=2, max_calls_by_call=0)
    for agent in range(4):
        for row in (0, 39):
            assert plan.place(f"a{agent}", row).engine == plan.place(f"b{agent}", row).engine


def test_known_and_equal_rows_are_not_called() -> None:
    compiled = _map_reduce(6)
    compiled = CompiledPlan(
        compiled.plan,
        compiled.columns,
        {"expert0": dict.fromkeys(range(6), ("x",)), "expert1": {0: ("y",)}},
        {"expert2": (0, 0, 0, 3, 3, 3)},
    )
    for limit in (0, 64):
        plan = _plan(compiled, max_calls_by_call=limit)
        _check(plan)
        calls = {name: p.num_calls for name, p in plan.predictions.items()}
        assert calls == {"expert1": 5, "expert2": 2, "summary": 6}
        with pytest.raises(PlanError, match="no call of operator 'expert0'"):
            plan.place("expert0", 0)


def test_slices_and_concatenations_of_rows_are_planned() -> None:
    operators: list[Operator] = [
        Input("q", column="q"),
        chat("a", "Look at ", Q),
        Slice("some", source="a", start=2),
        chat("b", "Look at some ", Reference("some")),
        Concat("all", sources=("a", "b")),
        chat("c", "Look at all ", Reference("all")),
        Output("result", source="c"),
    ]
    compiled = compile_plan(operators, q=["x", "y", "z", "u", "v"])
    for limit in (0, 64):
        plan = _plan(compiled, num_engines=2, max_calls_by_call=limit)
        _check(plan)
    _check(_plan(compiled, policy="query_wise"))


def test_a_plan_without_calls_is_a_plan() -> None:
    compiled = compile_plan([Input("q", column="q"), Output("out", source="q")], q=["x"])
    plan = _plan(compiled, num_engines=2)
    _check(plan)
    assert plan.makespan == 0.0
    assert plan.engine_plan(1).operators == ()


def test_static_tokens_reach_the_engine_exactly() -> None:
    message = _plan(_map_reduce(3)).engine_plan(0)
    tokenizer = WordTokenizer()
    (expert,) = [o for o in message.operators if o.name == "expert0"]
    nodes = [message.templates[index] for index in expert.template]
    prompt = (
        "<|im_start|>user\nQuestion one: HOLE As expert 0 answer<|im_end|>\n<|im_start|>assistant\n"
    )
    expected = list(tokenizer.encode(prompt).token_ids)
    static = [list(node.token_ids) for node in nodes if node.token_ids is not None]
    flat = [token for run in static for token in run]
    hole = len(tokenizer.encode("<|im_start|>user\nQuestion").token_ids)
    assert flat[:hole] == expected[:hole]
    assert flat[hole:] == expected[len(expected) - len(flat) + hole :]
    lengths = _plan(_map_reduce(3)).segment_lengths("expert0", expected)
    assert len(lengths) == len(nodes) and sum(lengths) == len(expected)


def test_a_large_message_loses_tokens_before_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = _plan(_map_reduce(3))
    full = plan.engine_plan(0)
    monkeypatch.setattr("helium.planner.engine_message.MAX_PLAN_BYTES", len(full.to_json()) - 1)
    small = plan.engine_plan(0)
    assert small.operators == full.operators
    assert all(node.token_ids is None for node in small.templates if node.num_uses == 1)
    monkeypatch.setattr("helium.planner.engine_message.MAX_PLAN_BYTES", 10)
    with pytest.raises(PlanError, match="an engine takes 10"):
        plan.engine_plan(0)


def test_the_roofline_model_plans_too() -> None:
    model = RooflineModel.preset("H100-NVL", "Qwen3-8B")
    plan = _plan(_map_reduce(100), model=model, num_engines=2)
    _check(plan)
    assert plan.unit == "ms" and plan.makespan > 0


@pytest.mark.parametrize(
    ("options", "problem"),
    [({"num_engines": 0}, "num_engines is 0"), ({"policy": "best"}, "unknown policy 'best'")],
)
def test_bad_options_are_refused(options: dict[str, object], problem: str) -> None:
    with pytest.raises(PlanError, match=problem):
        _plan(_map_reduce(1), **options)


_SCRIPT = """
from tests.unit.planner.test_planning import _map_reduce, _plan
import hashlib
digest = hashlib.sha256()
for rows in (4, 100):
    for engines in (1, 4):
        for message in _plan(_map_reduce(rows, 5), num_engines=engines).engine_plans():
            digest.update(message.to_json())
print(digest.hexdigest())
"""


def test_plans_are_the_same_bytes_in_every_process() -> None:
    found = set()
    for seed in ("0", "1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(done.stdout)
    assert len(found) == 1
