"""A plain dataflow over a bound plan: what other systems' orders are built on.

Every call of the workflow as written is made, also where equal ones are under way; the runtime of
this repository would share those, which no baseline does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from helium.errors import PlanError
from helium.plan.calls import Call
from helium.plan.compiled_plan import CompiledPlan
from helium.plan.functions import REGISTRY, Function
from helium.plan.interpret import Value
from helium.plan.operators import Data, Format, Input, Lambda, Llm, Operator, Reference, Text
from helium.plan.text import render
from helium.runtime.backend import ModelAnswer

Ask = Callable[[str, int, Call], Awaitable[ModelAnswer]]
"""Answers the call of an operator and a row."""


async def run_dataflow(
    compiled: CompiledPlan, ask: Ask, functions: Mapping[str, Function] = REGISTRY
) -> dict[str, list[Value]]:
    """Asks every call as soon as what it reads is there; returns the rows of each result by key.

    Raises:
        PlanError: The plan was optimized with its batch: rows are known or merged.
        EngineError: A call failed; the others are cancelled.
    """
    if compiled.known or compiled.representatives:
        raise PlanError("baselines run workflows as written; pass the plan before `optimize`")
    flow = _Dataflow(compiled, ask, functions)
    try:
        async with asyncio.TaskGroup() as group:
            for operator in compiled.plan.operators:
                for row in range(compiled.rows.num_rows(operator.name)):
                    flow.tasks[operator.name, row] = group.create_task(flow.compute(operator, row))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return {
        output.key: [
            flow.values[output.name, row] for row in range(compiled.rows.num_rows(output.name))
        ]
        for output in compiled.plan.outputs
    }


class _Dataflow:
    def __init__(self, compiled: CompiledPlan, ask: Ask, functions: Mapping[str, Function]) -> None:
        self.tasks: dict[tuple[str, int], asyncio.Task[None]] = {}
        self.values: dict[tuple[str, int], Value] = {}
        self._compiled = compiled
        self._ask = ask
        self._functions = functions

    async def compute(self, operator: Operator, row: int) -> None:
        """Waits for what a row reads, then computes its value."""
        name = operator.name
        sources = self._compiled.rows.dependencies(name, row)
        for source in sources:
            if source not in self.values:
                await asyncio.wait([self.tasks[source]])
        self.values[name, row] = await self._value(operator, row)

    async def _value(self, operator: Operator, row: int) -> Value:
        name = operator.name
        match operator:
            case Input() | Data():
                return self._compiled.value(operator, row)
            case Format():
                return self._fill(operator.text, name, row)
            case Lambda():
                values = [self._read(name, row, source) for source in operator.arguments]
                arguments = [list(v) if isinstance(v, tuple) else v for v in values]
                return await asyncio.to_thread(self._functions[operator.function], *arguments)
            case Llm():
                answer = await self._ask(name, row, self._call(operator, row))
                return answer.texts[0] if operator.sampling.n == 1 else answer.texts
        ((source, source_row),) = self._compiled.rows.dependencies(name, row)
        return self.values[source, source_row]

    def _call(self, operator: Llm, row: int) -> Call:
        name, prompt = operator.name, operator.prompt
        conversation = self._compiled.plan.conversation(name) if prompt is None else ()
        return Call(
            messages=tuple((m.role, self._fill(m.content, name, row)) for m in conversation),
            prompt=None if prompt is None else self._fill(prompt, name, row),
            sampling=operator.sampling,
            model=operator.model,
        )

    def _fill(self, text: Text, name: str, row: int) -> str:
        def value_of(reference: Reference) -> str:
            value = self._read(name, row, reference.operator)
            return value if isinstance(value, str) else value[reference.choice]

        return render(text, value_of)

    def _read(self, name: str, row: int, source: str) -> Value:
        return self.values[source, self._compiled.rows.source_row(name, row, source)]
