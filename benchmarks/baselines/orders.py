"""In which order calls reach the engines: baselines over the runtime's own dataflow.

An order is a gate in front of the engines. Calls belong to *stages* of *lanes*: a call may start
when every call of its lane's earlier stages has ended. Engines behind a gate see ordinary traffic.

Source: Helium, §7 (query-wise, operator-wise); LangGraph's documentation (Pregel supersteps: the
nodes that are ready run in parallel, and the next superstep starts when all of them have ended).
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence

import msgspec

from helium.planner import WorkflowPlan
from helium.protocol import EnginePlan
from helium.runtime.backend import EngineBackend, ModelAnswer, ModelCall

Stage = tuple[Hashable, int]
"""A lane and the number of a stage in it."""

StageOf = Callable[[int, str, int], Stage]
"""Stage of a call by engine, operator and row."""


def query_wise(schedule: WorkflowPlan) -> StageOf:
    """One call after the other on each engine: row by row, each in topological order."""
    numbers = _topological_numbers(schedule)
    return lambda engine, operator, row: (engine, row * len(numbers) + numbers[operator])


def op_wise(schedule: WorkflowPlan) -> StageOf:
    """One operator after the other on each engine, for all of the engine's rows at once."""
    numbers = _topological_numbers(schedule)
    return lambda engine, operator, row: (engine, numbers[operator])


def langgraph(schedule: WorkflowPlan) -> StageOf:
    """Rows side by side; in each of them supersteps with a barrier after each."""
    depths: dict[str, int] = {}
    for operator in schedule.lowering.operators:
        reads = schedule.lowering.reads[operator.name]
        depths[operator.name] = 1 + max((depths[read] for read in reads), default=-1)
    return lambda engine, operator, row: (("row", row), depths[operator])


ORDERS: dict[str, Callable[[WorkflowPlan], StageOf]] = {
    "query_wise": query_wise,
    "op_wise": op_wise,
    "langgraph": langgraph,
}


def ordered(
    order: str, schedule: WorkflowPlan, engines: Sequence[EngineBackend]
) -> list[EngineBackend]:
    """Returns the engines behind a gate of their own, for one run of the schedule's plan.

    Args:
        order: One of ``ORDERS``.
        schedule: Says which engine runs which row; its ranks are not used.
    """
    gate = _Gate(schedule, ORDERS[order](schedule))
    return [_GatedBackend(engine, number, gate) for number, engine in enumerate(engines)]


def without_plan(engines: Sequence[EngineBackend]) -> list[EngineBackend]:
    """Returns the engines as stock vLLM is reached: they learn of no plan and no context."""
    return [_PlainBackend(engine) for engine in engines]


def _topological_numbers(schedule: WorkflowPlan) -> dict[str, int]:
    return {op.name: number for number, op in enumerate(schedule.lowering.operators)}


class _Gate:
    """Counts the calls of every stage and opens stages one after the other."""

    def __init__(self, schedule: WorkflowPlan, stage_of: StageOf) -> None:
        self._stage_of = stage_of
        self._remaining: dict[Hashable, Counter[int]] = defaultdict(Counter)
        self._waiting: dict[Stage, list[asyncio.Future[None]]] = defaultdict(list)
        for operator in schedule.lowering.operators:
            for row in schedule.compiled.calls(operator.name):
                engine = schedule.place(operator.name, row).engine
                lane, number = stage_of(engine, operator.name, row)
                self._remaining[lane][number] += 1
        # Of each lane: its stages, the open one last.
        self._stages = {lane: sorted(c, reverse=True) for lane, c in self._remaining.items()}

    async def enter(self, engine: int, operator: str, row: int) -> Stage:
        """Waits for the call's stage to open."""
        lane, number = stage = self._stage_of(engine, operator, row)
        if number > self._stages[lane][-1]:
            opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting[stage].append(opened)
            await opened
        return stage

    def leave(self, stage: Stage) -> None:
        """Ends a call; the last one of a stage opens the next."""
        lane, number = stage
        self._remaining[lane][number] -= 1
        stages = self._stages[lane]
        while len(stages) > 1 and not self._remaining[lane][stages[-1]]:
            stages.pop()
        for opened in self._waiting.pop((lane, stages[-1]), ()):
            if not opened.done():
                opened.set_result(None)


class _PlainBackend:
    def __init__(self, engine: EngineBackend) -> None:
        self._engine = engine

    async def register(self, plan: EnginePlan) -> None:
        """Tells the engine nothing."""

    async def call(self, request: ModelCall) -> ModelAnswer:
        return await self._engine.call(msgspec.structs.replace(request, context=None))


class _GatedBackend(_PlainBackend):
    def __init__(self, engine: EngineBackend, number: int, gate: _Gate) -> None:
        super().__init__(engine)
        self._number = number
        self._gate = gate

    async def call(self, request: ModelCall) -> ModelAnswer:
        assert request.context is not None, "a gated run needs a schedule"
        stage = await self._gate.enter(self._number, request.context.operator, request.context.row)
        try:
            return await super().call(request)
        finally:
            self._gate.leave(stage)
