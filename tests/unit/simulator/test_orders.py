"""Orders of calls: who may start when, checked on every pair of calls."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from benchmarks.baselines.dataflow import run_dataflow
from benchmarks.baselines.orders import ordered, unordered
from benchmarks.baselines.parrot import ParrotDispatcher
from helium.plan.calls import Call
from helium.plan.compiled_plan import CompiledPlan, bind
from helium.plan.logical_plan import LogicalPlan
from helium.plan.operators import Input, Llm, Message, Output, Reference, Sampling
from helium.plan.text import text
from helium.runtime import ModelAnswer, ModelCall
from vllm_helium.simulator.virtual_time import VirtualClock, run

ROWS = 4
OPERATORS = ("first", "second", "join", "last")
SUPERSTEPS = {"first": 0, "second": 0, "join": 1, "last": 2}


@dataclass
class _Seen:
    operator: str
    row: int
    engine: int
    start_s: float
    end_s: float = float("inf")


class _Engine:
    """Answers after a time that depends on the call; notes when each one ran."""

    def __init__(self, number: int, clock: VirtualClock, seen: list[_Seen]) -> None:
        self._number = number
        self._clock = clock
        self._seen = seen

    async def call(self, request: ModelCall) -> ModelAnswer:
        assert request.context is None
        prompt = request.call.messages[0][1]
        operator, row = prompt.split()[0], int(prompt.split()[1])
        seen = _Seen(operator, row, self._number, self._clock.now())
        self._seen.append(seen)
        await asyncio.sleep(1 + row + (operator == "second"))
        seen.end_s = self._clock.now()
        return ModelAnswer((f"answer to {operator} {row}",))


class _Nothing:
    def prepare(self) -> None: ...

    def next_event_s(self) -> None: ...

    def happen(self) -> None: ...


def _workflow() -> CompiledPlan:
    row = Reference("row")

    def ask(name: str, *reads: str) -> Llm:
        parts = [part for read in reads for part in (" after ", Reference(read))]
        message = Message("user", text(f"{name} ", row, *parts))
        return Llm(name, messages=(message,), sampling=Sampling(max_tokens=8))

    plan = LogicalPlan(
        (
            Input("row", column="row"),
            ask("first"),
            ask("second"),
            ask("join", "first", "second"),
            ask("last", "join"),
            Output("out", source="last"),
        )
    )
    plan.validate()
    return bind(plan, {"row": [str(number) for number in range(ROWS)]})


def _run(order: str | None, num_engines: int = 1) -> tuple[list[_Seen], float]:
    compiled, clock = _workflow(), VirtualClock()
    seen: list[_Seen] = []
    engines = [_Engine(number, clock, seen) for number in range(num_engines)]
    ask = ordered(order, compiled, engines) if order else unordered(compiled, engines)
    outputs = run(lambda: run_dataflow(compiled, ask), clock, _Nothing())
    assert outputs["out"] == [f"answer to last {row}" for row in range(ROWS)]
    assert len(seen) == len(OPERATORS) * ROWS
    return seen, clock.now()


def _pairs(seen: list[_Seen]):
    return ((one, other) for one in seen for other in seen if one is not other)


def test_query_wise_runs_one_call_at_a_time_row_by_row():
    seen, makespan_s = _run("query_wise")
    assert [(s.operator, s.row) for s in seen] == [(o, r) for r in range(ROWS) for o in OPERATORS]
    assert all(a.end_s <= b.start_s or b.end_s <= a.start_s for a, b in _pairs(seen))
    assert makespan_s == sum(s.end_s - s.start_s for s in seen)


def test_op_wise_runs_an_operator_for_all_rows_before_the_next():
    seen, makespan_s = _run("op_wise")
    for one, other in _pairs(seen):
        if OPERATORS.index(one.operator) < OPERATORS.index(other.operator):
            assert one.end_s <= other.start_s
    assert makespan_s == 4 + 5 + 4 + 4  # the slowest row of every operator


def test_langgraph_has_a_barrier_after_each_superstep_of_a_row_and_none_between_rows():
    seen, makespan_s = _run("langgraph")
    for one, other in _pairs(seen):
        if one.row == other.row and SUPERSTEPS[one.operator] < SUPERSTEPS[other.operator]:
            assert one.end_s <= other.start_s
    starts = {(s.operator, s.row): s.start_s for s in seen}
    assert all(starts["first", row] == starts["second", row] == 0 for row in range(ROWS))
    assert [starts["join", row] for row in range(ROWS)] == [2, 3, 4, 5]
    assert makespan_s == 5 + 4 + 4


def test_langgraph_holds_back_what_is_ready_until_the_superstep_ends():
    row = Reference("row")

    def ask(name: str, *reads: str) -> Llm:
        parts = [part for read in reads for part in (" after ", Reference(read))]
        return Llm(name, messages=(Message("user", text(f"{name} ", row, *parts)),))

    plan = LogicalPlan(
        (
            Input("row", column="row"),
            ask("first"),
            ask("second"),  # takes longer than ``first``
            ask("join", "first"),
            Output("a", source="second"),
            Output("b", source="join"),
        )
    )
    compiled, clock = bind(plan, {"row": ["0"]}), VirtualClock()
    seen: list[_Seen] = []
    ask = ordered("langgraph", compiled, [_Engine(0, clock, seen)])
    run(lambda: run_dataflow(compiled, ask), clock, _Nothing())
    assert {s.operator: s.start_s for s in seen} == {"first": 0, "second": 0, "join": 2}


def test_without_an_order_calls_start_as_soon_as_they_can():
    seen, _ = _run(None)
    starts = {(s.operator, s.row): s.start_s for s in seen}
    assert [starts["join", row] for row in range(ROWS)] == [2, 3, 4, 5]


@pytest.mark.parametrize("order", ["query_wise", "op_wise", "langgraph"])
def test_on_two_engines_rows_are_cut_into_slices(order):
    seen, makespan_s = _run(order, num_engines=2)
    assert {(s.row, s.engine) for s in seen} == {(0, 0), (1, 0), (2, 1), (3, 1)}
    assert makespan_s <= _run(order)[1]
    if order == "query_wise":
        own = [s for s in seen if s.engine == 1]
        assert all(a.end_s <= b.start_s or b.end_s <= a.start_s for a, b in _pairs(own))


def test_parrot_sends_calls_where_their_prefix_is_and_others_where_there_is_room():
    clock = VirtualClock()

    class Engine:
        def __init__(self) -> None:
            self.prompts: list[str] = []

        async def call(self, request: ModelCall) -> ModelAnswer:
            assert request.context is None
            self.prompts.append(request.call.messages[-1][1])
            await asyncio.sleep(1)
            return ModelAnswer(("done",))

    engines = [Engine(), Engine()]
    dispatcher = ParrotDispatcher(engines)

    def ask(system: str, user: str):
        call = Call((("system", system), ("user", user)), None, Sampling(), None)
        return dispatcher.ask("agent", 0, call)

    async def program() -> None:
        await asyncio.gather(ask("a", "a1"), ask("b", "b1"), ask("a", "a2"), ask("b", "b2"))
        await ask("b", "b3")
        await asyncio.gather(ask("a", "a3"), ask("c", "c1"))

    run(program, clock, _Nothing())
    assert engines[0].prompts == ["a1", "a2", "a3"]
    assert engines[1].prompts == ["b1", "b2", "b3", "c1"]
