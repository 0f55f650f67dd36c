"""In which order calls reach the engines: baselines over a plain dataflow.

An order is a gate in front of the engines. Calls belong to *stages* of *lanes*: a call may start
when every call of its lane's earlier stages has ended. On several engines rows are cut into
contiguous slices, one per engine.

Source: Helium, §7 (query-wise, operator-wise); LangGraph's documentation (Pregel supersteps: the
nodes that are ready run in parallel, and the next superstep starts when all of them have ended).
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence

from benchmarks.baselines.dataflow import Ask
from helium.plan.calls import Call
from helium.plan.compiled_plan import CompiledPlan
from helium.plan.operators import Llm
from helium.runtime.backend import EngineBackend, ModelAnswer, ModelCall

Stage = tuple[Hashable, int]
"""A lane and the number of a stage in it."""

StageOf = Callable[[int, str, int], Stage]
"""Stage of a call by engine, operator and row."""


def query_wise(compiled: CompiledPlan) -> StageOf:
    """One call after the other on each engine: row by row, each in topological order."""
    numbers = _topological_numbers(compiled)
    return lambda engine, operator, row: (engine, row * len(numbers) + numbers[operator])


def op_wise(compiled: CompiledPlan) -> StageOf:
    """One operator after the other on each engine, for all of the engine's rows at once."""
    numbers = _topological_numbers(compiled)
    return lambda engine, operator, row: (engine, numbers[operator])


def langgraph(compiled: CompiledPlan) -> StageOf:
    """Rows side by side; in each of them supersteps with a barrier after each."""
    depths: dict[str, int] = {}
    for operator in compiled.plan.operators:
        above = max((depths[read] for read in operator.reads), default=0)
        depths[operator.name] = above + isinstance(operator, Llm)
    return lambda engine, operator, row: (("row", row), depths[operator])


ORDERS: dict[str, Callable[[CompiledPlan], StageOf]] = {
    "query_wise": query_wise,
    "op_wise": op_wise,
    "langgraph": langgraph,
}


def slice_of(compiled: CompiledPlan, num_engines: int, operator: str, row: int) -> int:
    """Returns the engine of a row."""
    return row * num_engines // compiled.rows.num_rows(operator)


def unordered(compiled: CompiledPlan, engines: Sequence[EngineBackend]) -> Ask:
    """Sends every call at once; what comes first is served first."""

    async def ask(operator: str, row: int, call: Call) -> ModelAnswer:
        engine = engines[slice_of(compiled, len(engines), operator, row)]
        return await engine.call(ModelCall(call))

    return ask


def ordered(order: str, compiled: CompiledPlan, engines: Sequence[EngineBackend]) -> Ask:
    """Holds calls back until their turn, for one run of the plan.

    Args:
        order: One of ``ORDERS``.
    """
    gate = _Gate(compiled, len(engines), ORDERS[order](compiled))
    send = unordered(compiled, engines)

    async def ask(operator: str, row: int, call: Call) -> ModelAnswer:
        stage = await gate.enter(operator, row)
        try:
            return await send(operator, row, call)
        finally:
            gate.leave(stage)

    return ask


def _topological_numbers(compiled: CompiledPlan) -> dict[str, int]:
    return {op.name: number for number, op in enumerate(compiled.plan.llm_operators)}


class _Gate:
    """Counts the calls of every stage and opens stages one after the other."""

    def __init__(self, compiled: CompiledPlan, num_engines: int, stage_of: StageOf) -> None:
        self._stages: dict[tuple[str, int], Stage] = {}
        self._remaining: dict[Hashable, Counter[int]] = defaultdict(Counter)
        self._waiting: dict[Stage, list[asyncio.Future[None]]] = defaultdict(list)
        for operator in compiled.plan.llm_operators:
            for row in range(compiled.rows.num_rows(operator.name)):
                engine = slice_of(compiled, num_engines, operator.name, row)
                lane, number = stage_of(engine, operator.name, row)
                self._stages[operator.name, row] = (lane, number)
                self._remaining[lane][number] += 1
        # Of each lane: its stages that have calls left, the open one last.
        self._open = {lane: sorted(c, reverse=True) for lane, c in self._remaining.items()}

    async def enter(self, operator: str, row: int) -> Stage:
        """Waits for the call's stage to open."""
        lane, number = stage = self._stages[operator, row]
        if number > self._open[lane][-1]:
            opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting[stage].append(opened)
            await opened
        return stage

    def leave(self, stage: Stage) -> None:
        """Ends a call; the last one of a stage opens the next."""
        lane, number = stage
        self._remaining[lane][number] -= 1
        stages = self._open[lane]
        while len(stages) > 1 and not self._remaining[lane][stages[-1]]:
            stages.pop()
        for opened in self._waiting.pop((lane, stages[-1]), ()):
            if not opened.done():
                opened.set_result(None)
