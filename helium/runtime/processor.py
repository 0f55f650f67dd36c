"""The dataflow processor: every row of every operator runs as soon as what it reads is there.

There is no barrier between operators and no order here at all: the order of calls is the engine's
business, which knows the plan. Work is linear in rows × operators plus edges.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping

from helium.errors import EngineError
from helium.plan.compiled_plan import CompiledPlan
from helium.plan.functions import REGISTRY, Function
from helium.plan.interpret import Value
from helium.plan.operators import Data, Format, Input, Lambda, Llm, Operator, Reference, Text
from helium.plan.text import render
from helium.protocol import EnginePlan, WorkflowContext
from helium.runtime.backend import EngineBackend, ModelAnswer, ModelCall
from helium.runtime.result import CallCounts, RowFailure, RunResult

Cell = tuple[str, int]
"""An operator's name and one of its rows."""

Progress = Callable[[str, int, ModelAnswer | None], None]
"""Told of every finished LLM call: operator, row, its answer or ``None`` where it failed."""


async def run_plan(
    compiled: CompiledPlan,
    backend: EngineBackend,
    *,
    engine_plan: EnginePlan | None = None,
    run: str | None = None,
    cache_salt: str | None = None,
    functions: Mapping[str, Function] = REGISTRY,
    function_timeout_s: float = 60.0,
    on_call: Progress | None = None,
) -> RunResult:
    """Runs a plan bound to a batch.

    A row that fails takes only what depends on it along; the rest of the run goes on.

    Args:
        engine_plan: Registered with the backend first; calls of its operators carry a context.
            Without it every call is ordinary traffic.
        run: Id of the run; made up if not given.
        cache_salt: Tenant of every call.
        function_timeout_s: Seconds a ``Lambda``'s function may take for one row.

    Raises:
        EngineError: The backend cannot be reached to register the plan.
    """
    if engine_plan is not None:
        await backend.register(engine_plan)
    state = _Run(compiled, backend, engine_plan, run or f"run-{uuid.uuid4().hex[:12]}")
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
        backend: EngineBackend,
        engine_plan: EnginePlan | None,
        run: str,
    ) -> None:
        self._compiled = compiled
        self._plan = compiled.plan
        self._rows = compiled.rows
        self._backend = backend
        self._run = run
        self._digest = None if engine_plan is None else engine_plan.digest()
        self._planned = {operator.name for operator in engine_plan.operators} if engine_plan else {}
        self._values: dict[str, list[_Slot]] = {}
        self._missing: dict[str, list[int]] = {}
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
        for operator in self._plan.operators:
            num_rows = self._rows.num_rows(operator.name)
            self._values[operator.name] = [None] * num_rows
            counts = self._missing[operator.name] = []
            for row in range(num_rows):
                num_missing = len(self._rows.dependencies(operator.name, row))
                counts.append(num_missing)
                if num_missing == 0:
                    self._ready.append((operator.name, row))
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
            slots = self._values[output.name]
            outputs[output.key] = [None if isinstance(slot, _Failed) else slot for slot in slots]
        return RunResult(
            self._run, outputs, self._failures, self._counts, time.perf_counter() - started
        )

    def _drain(self) -> None:
        """Starts everything that is ready; values at hand are computed on the spot."""
        while self._ready:
            name, row = self._ready.popleft()
            operator = self._plan.by_name[name]
            if any(
                isinstance(self._values[source][source_row], _Failed)
                for source, source_row in self._rows.dependencies(name, row)
            ):
                self._finish(name, row, _FAILED)
            elif isinstance(operator, Llm):
                known = self._compiled.known.get(name, {}).get(row)
                if known is not None:
                    self._finish(name, row, known[0] if operator.sampling.n == 1 else known)
                else:
                    self._start(self._call(operator, row))
            elif isinstance(operator, Lambda):
                self._start(self._apply(operator, row))
            else:
                self._finish(name, row, self._evaluate(operator, row))

    def _start(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _finish(self, name: str, row: int, value: Value | _Failed) -> None:
        self._values[name][row] = value
        for consumer in self._plan.consumers()[name]:
            missing = self._missing[consumer]
            for consumer_row in self._rows.dependent_rows(consumer, name, row):
                missing[consumer_row] -= 1
                if missing[consumer_row] == 0:
                    self._ready.append((consumer, consumer_row))

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
        call = ModelCall(
            messages=tuple(
                (message.role, self._fill(message.content, name, row))
                for message in self._messages.get(name, ())
            ),
            prompt=None if prompt is None else self._fill(prompt, name, row),
            sampling=operator.sampling,
            model=operator.model,
            context=self._context(name, row),
            cache_salt=self.cache_salt,
        )
        answer: ModelAnswer | None = None
        try:
            answer = await self._backend.call(call)
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

    def _context(self, name: str, row: int) -> WorkflowContext | None:
        if self._digest is None or name not in self._planned:
            return None
        return WorkflowContext(plan=self._digest, run=self._run, operator=name, row=row)

    def _fill(self, text: Text, name: str, row: int) -> str:
        def value_of(reference: Reference) -> str:
            value = self._read(name, row, reference.operator)
            return value if isinstance(value, str) else value[reference.choice]

        return render(text, value_of)

    def _read(self, name: str, row: int, source: str) -> Value:
        return self._get(source, self._rows.source_row(name, row, source))

    def _get(self, name: str, row: int) -> Value:
        value = self._values[name][row]
        assert value is not None and not isinstance(value, _Failed), f"{name}[{row}] is not there"
        return value
