"""The dataflow processor: every row of every operator runs as soon as what it reads is there.

There is no barrier between operators and no order here at all: the order of calls is the engine's
business, which knows the plan. Work is linear in rows × operators plus edges.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence

from helium.errors import EngineError, PlanError
from helium.plan.calls import Call
from helium.plan.compiled_plan import CompiledPlan
from helium.plan.functions import REGISTRY, Function
from helium.plan.interpret import Value
from helium.plan.operators import (
    Data,
    Format,
    Input,
    Lambda,
    Llm,
    Operator,
    Reference,
    Text,
    references,
)
from helium.plan.text import render
from helium.planner.workflow_plan import WorkflowPlan
from helium.protocol import WorkflowContext
from helium.runtime.backend import EngineBackend, ModelAnswer, ModelCall
from helium.runtime.result import CallCounts, RowFailure, RunResult

Cell = tuple[str, int]
"""An operator's name and one of its rows."""

Progress = Callable[[str, int, ModelAnswer | None], None]
"""Told of every finished LLM call: operator, row, its answer or ``None`` where it failed."""


async def run_plan(
    compiled: CompiledPlan,
    backends: EngineBackend | Sequence[EngineBackend],
    *,
    schedule: WorkflowPlan | None = None,
    run: str | None = None,
    cache_salt: str | None = None,
    functions: Mapping[str, Function] = REGISTRY,
    function_timeout_s: float = 60.0,
    on_call: Progress | None = None,
) -> RunResult:
    """Runs a plan bound to a batch.

    A row that fails takes only what depends on it along; the rest of the run goes on.

    Args:
        backends: One engine, or as many as the schedule was made for.
        schedule: The planner's: where each call runs, and its rank there. Its messages are
            registered with the engines first. Without it every call is ordinary traffic of the
            first engine.
        run: Id of the run; made up if not given.
        cache_salt: Tenant of every call.
        function_timeout_s: Seconds a ``Lambda``'s function may take for one row.

    Raises:
        EngineError: A backend cannot be reached to register the plan.
        PlanError: The schedule is for another number of engines.
    """
    engines = list(backends) if isinstance(backends, Sequence) else [backends]
    state = _Run(compiled, engines, schedule, run or f"run-{uuid.uuid4().hex[:12]}")
    state.cache_salt = cache_salt
    state.functions = functions
    state.function_timeout_s = function_timeout_s
    state.on_call = on_call
    return await state.execute()


class _Failed:
    """Marks a row whose value will never come."""


_FAILED = _Failed()
_Slot = Value | _Failed | None


class _Run:
    cache_salt: str | None
    functions: Mapping[str, Function]
    function_timeout_s: float
    on_call: Progress | None

    def __init__(
        self,
        compiled: CompiledPlan,
        engines: Sequence[EngineBackend],
        schedule: WorkflowPlan | None,
        run: str,
    ) -> None:
        if schedule is not None and schedule.num_engines != len(engines):
            raise PlanError(
                f"the schedule is for {schedule.num_engines} engines, {len(engines)} were given; "
                "plan again with num_engines set"
            )
        self._compiled = compiled
        self._plan = compiled.plan
        self._rows = compiled.rows
        self._engines = engines
        self._schedule = schedule
        self._digests: list[str] = []
        self._run = run
        self._values: dict[str, list[_Slot]] = {}
        self._missing: dict[Cell, int] = {}
        self._readers: dict[Cell, list[Cell]] = {}
        self._ready: deque[Cell] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: list[RowFailure] = []
        self._counts = {operator.name: CallCounts() for operator in self._plan.llm_operators}
        self._messages = {
            operator.name: self._plan.conversation(operator.name)
            for operator in self._plan.llm_operators
            if operator.prompt is None
        }

    async def execute(self) -> RunResult:
        started = time.perf_counter()
        if self._schedule is not None:
            plans = self._schedule.engine_plans()
            self._digests = [plan.digest() for plan in plans]
            await asyncio.gather(
                *(engine.register(plan) for engine, plan in zip(self._engines, plans, strict=True))
            )
        for operator in self._plan.operators:
            self._connect(operator)
        try:
            self._drain()
            while self._tasks:
                done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        outputs: dict[str, list[Value | None]] = {}
        for output in self._plan.outputs:
            name = output.name
            slots = [self._slot(name, row) for row in range(self._rows.num_rows(name))]
            outputs[output.key] = [None if isinstance(slot, _Failed) else slot for slot in slots]
        elapsed_s = time.perf_counter() - started
        return RunResult(self._run, outputs, self._failures, self._counts, elapsed_s)

    def _connect(self, operator: Operator) -> None:
        """Finds what every row to compute waits for; operators come producers first."""
        name = operator.name
        self._values[name] = [None] * self._rows.num_rows(name)
        for row, known in self._compiled.known.get(name, {}).items():
            self._values[name][row] = known[0] if len(known) == 1 else known
        for row in self._compiled.demand.rows(name):
            cell = (name, row)
            sources = [source for source in self._sources(operator, row) if not self._has(source)]
            self._missing[cell] = len(sources)
            for source in sources:
                self._readers.setdefault(source, []).append(cell)
            if not sources:
                self._ready.append(cell)

    def _sources(self, operator: Operator, row: int) -> set[Cell]:
        """Returns the rows a value is made from; a conversation's are those of all its turns."""
        name = operator.name
        if isinstance(operator, Llm) and operator.history is not None:
            reads = {
                reference
                for message in self._messages[name]
                for reference in references(message.content)
            }
            cells = [(read, self._rows.source_row(name, row, read)) for read in reads]
        else:
            cells = list(self._rows.dependencies(name, row))
        return {(source, self._representative(source, at)) for source, at in cells}

    def _representative(self, name: str, row: int) -> int:
        """Returns the row that is computed for this one (rule ``merge_equal_rows``)."""
        rows = self._compiled.representatives.get(name)
        return row if rows is None else rows[row]

    def _slot(self, name: str, row: int) -> _Slot:
        return self._values[name][self._representative(name, row)]

    def _has(self, cell: Cell) -> bool:
        return self._values[cell[0]][cell[1]] is not None

    def _drain(self) -> None:
        """Starts everything that is ready; values at hand are computed on the spot."""
        while self._ready:
            name, row = self._ready.popleft()
            operator = self._plan.by_name[name]
            if any(
                isinstance(self._values[source][at], _Failed)
                for source, at in self._sources(operator, row)
            ):
                self._finish(name, row, _FAILED)
            elif isinstance(operator, Llm):
                self._start(self._call(operator, row))
            elif isinstance(operator, Lambda):
                self._start(self._apply(operator, row))
            else:
                self._finish(name, row, self._evaluate(operator, row))

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _finish(self, name: str, row: int, value: Value | _Failed) -> None:
        self._values[name][row] = value
        for reader in self._readers.pop((name, row), ()):
            self._missing[reader] -= 1
            if self._missing[reader] == 0:
                del self._missing[reader]
                self._ready.append(reader)

    def _fail(self, name: str, row: int, reason: str) -> None:
        self._failures.append(RowFailure(name, row, reason))
        self._finish(name, row, _FAILED)

    def _evaluate(self, operator: Operator, row: int) -> Value:
        if isinstance(operator, (Input, Data)):
            return self._compiled.value(operator, row)
        if isinstance(operator, Format):
            return self._fill(operator.text, operator.name, row)
        ((source, source_row),) = self._rows.dependencies(operator.name, row)
        return self._get(source, source_row)

    async def _apply(self, operator: Lambda, row: int) -> None:
        values = [self._read(operator.name, row, name) for name in operator.arguments]
        arguments = [list(value) if isinstance(value, tuple) else value for value in values]
        function = self.functions[operator.function]
        try:
            async with asyncio.timeout(self.function_timeout_s):
                result = await asyncio.to_thread(function, *arguments)
        except TimeoutError:
            reason = f"function {operator.function!r} took more than {self.function_timeout_s} s"
            self._fail(operator.name, row, reason)
        except Exception as error:
            reason = f"function {operator.function!r} raised {type(error).__name__}: {error}"
            self._fail(operator.name, row, reason)
        else:
            if isinstance(result, str):
                self._finish(operator.name, row, result)
            else:
                kind = type(result).__name__
                reason = f"function {operator.function!r} returned {kind}, expected str"
                self._fail(operator.name, row, reason)
        self._drain()

    async def _call(self, operator: Llm, row: int) -> None:
        name = operator.name
        prompt = operator.prompt
        engine, context = self._place(name, row)
        call = Call(
            messages=tuple(
                (message.role, self._fill(message.content, name, row))
                for message in self._messages.get(name, ())
            ),
            prompt=None if prompt is None else self._fill(prompt, name, row),
            sampling=operator.sampling,
            model=operator.model,
        )
        answer: ModelAnswer | None = None
        try:
            answer = await engine.call(ModelCall(call, context, self.cache_salt))
        except EngineError as error:
            self._fail(name, row, str(error))
        else:
            counts = self._counts[name]
            counts.num_calls += 1
            counts.num_prompt_tokens += answer.num_prompt_tokens
            counts.num_cached_tokens += answer.num_cached_tokens
            counts.num_output_tokens += answer.num_output_tokens
            if len(answer.texts) == operator.sampling.n:
                self._finish(name, row, answer.texts[0] if len(answer.texts) == 1 else answer.texts)
            else:
                expected = operator.sampling.n
                self._fail(name, row, f"{len(answer.texts)} outputs came back, not n={expected}")
        if self.on_call is not None:
            self.on_call(name, row, answer)
        self._drain()

    def _place(self, name: str, row: int) -> tuple[EngineBackend, WorkflowContext | None]:
        if self._schedule is None:
            return self._engines[0], None
        place = self._schedule.place(name, row)
        context = WorkflowContext(
            plan=self._digests[place.engine],
            run=self._run,
            operator=name,
            row=row,
            rank=place.rank,
        )
        return self._engines[place.engine], context

    def _fill(self, text: Text, name: str, row: int) -> str:
        def value_of(reference: Reference) -> str:
            value = self._read(name, row, reference.operator)
            return value if isinstance(value, str) else value[reference.choice]

        return render(text, value_of)

    def _read(self, name: str, row: int, source: str) -> Value:
        return self._get(source, self._rows.source_row(name, row, source))

    def _get(self, name: str, row: int) -> Value:
        value = self._slot(name, row)
        assert value is not None and not isinstance(value, _Failed), f"{name}[{row}] is not there"
        return value
