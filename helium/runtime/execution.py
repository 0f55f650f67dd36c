"""One run: every row of every operator starts as soon as what it reads is there.

There is no barrier between operators and no order here at all: the order of calls is the engine's
business, which knows the plan. A run has no task of its own per call; it reacts to outcomes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping

import msgspec

from helium.errors import EngineError, PlanError
from helium.plan.calls import Call
from helium.plan.compiled_plan import CompiledPlan
from helium.plan.functions import REGISTRY, Function
from helium.plan.interpret import Value
from helium.plan.operators import Concat, Format, Lambda, Llm, Output, Slice
from helium.planner.workflow_plan import WorkflowPlan
from helium.protocol import EnginePlan, WorkflowContext
from helium.runtime.backend import EngineGone, ModelAnswer, ModelCall
from helium.runtime.dataflow import Cell, Dataflow, Failed, Template
from helium.runtime.dispatcher import Dispatcher
from helium.runtime.events import (
    CallFinished,
    CallStarted,
    FunctionFinished,
    Listener,
    RowDone,
    RowFailed,
    RunFinished,
    RunStarted,
)
from helium.runtime.function_threads import FunctionFailed, FunctionJob, FunctionThreads
from helium.runtime.result import CallCounts, RowFailure, RunResult
from helium.runtime.tickets import Origin, Ticket

Progress = Callable[[str, int, ModelAnswer | None], None]
"""Told of every finished LLM call: operator, row, its answer or ``None`` where it failed."""

_CHUNK = 256
"""Cells started before other runs and the engines get their turn."""


class RunOptions(msgspec.Struct, frozen=True):
    """How a plan is run.

    Attributes:
        cache_salt: Tenant of every call.
        functions: Where the functions of ``Lambda`` operators are looked up.
        function_timeout_s: Seconds a function may take for one row.
        timeout_s: Seconds the run may take; what is not done by then fails. ``None``: no limit.
        has_hints: Whether engines are told of the schedule. Without it the schedule still places
            calls, for example where it was made with a tokenizer that is not the model's.
        on_event: Told of every event.
        on_call: Told of every finished call.
    """

    cache_salt: str | None = None
    functions: Mapping[str, Function] = REGISTRY
    function_timeout_s: float = 60.0
    timeout_s: float | None = None
    has_hints: bool = True
    on_event: Listener | None = None
    on_call: Progress | None = None


class Execution:
    """One run on a dispatcher that others may use as well; execute it once.

    Attributes:
        schedule: The plan the run is on, if any.
        num_calls: LLM calls to make.
        num_calls_done: Of those, answered or failed.
    """

    def __init__(
        self,
        compiled: CompiledPlan,
        dispatcher: Dispatcher,
        threads: FunctionThreads,
        run: str,
        schedule: WorkflowPlan | None = None,
        options: RunOptions | None = None,
    ) -> None:
        num_engines = len(dispatcher.engines)
        if schedule is not None and schedule.num_engines != num_engines:
            raise PlanError(
                f"the schedule is for {schedule.num_engines} engines, {num_engines} were given; "
                "plan again with num_engines set"
            )
        self._compiled = compiled
        self._plan = compiled.plan
        self._dispatcher = dispatcher
        self._threads = threads
        self._run = run
        self._schedule = self.schedule = schedule
        self._options = options or RunOptions()
        self._emit = self._options.on_event
        self._plans: tuple[EnginePlan, ...] = ()
        self._digests: list[str] = []
        llm_operators = self._plan.llm_operators
        self.num_calls = sum(len(compiled.calls(operator.name)) for operator in llm_operators)
        self.num_calls_done = 0
        self._counts = {operator.name: CallCounts() for operator in llm_operators}
        self._failures: list[RowFailure] = []
        self._prompts: dict[str, _Prompt] = {}
        self._formats: dict[str, Template] = {}
        self._tickets: dict[Ticket, None] = {}
        self._jobs: dict[Cell, FunctionJob] = {}
        self._flow = Dataflow(compiled)
        self._is_over: asyncio.Future[None] | None = None
        self._is_advancing = False
        self._stopped_because: str | None = None
        self._stopped = asyncio.Event()
        self._status = "done"

    async def execute(self) -> RunResult:
        """Runs the plan to its end; cancelling this cancels every call of the run.

        Raises:
            EngineError: No backend can be reached to register the plan, or one refused it.
        EngineGone: All engines have died; what is not done was not tried.
        """
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        if self._emit is not None:
            self._emit(RunStarted(self._run, self.num_calls))
        limit: asyncio.TimerHandle | None = None
        if self._options.timeout_s is not None:
            reason = f"the run took more than {self._options.timeout_s} s"
            limit = loop.call_later(self._options.timeout_s, self.stop, reason, "timed_out")
        try:
            if self._schedule is not None and self._options.has_hints:
                await self._register(self._schedule)
            self._is_over = loop.create_future()
            self._advance()
            await self._is_over
        finally:
            if limit is not None:
                limit.cancel()
            self._drop_work()
            self._dispatcher.forget(self._plans)
        outputs: dict[str, list[Value | None]] = {}
        for output in self._plan.outputs:
            num_rows = self._compiled.rows.num_rows(output.name)
            slots = [self._flow.slot(output.name, row) for row in range(num_rows)]
            outputs[output.key] = [None if isinstance(slot, Failed) else slot for slot in slots]
        if self._emit is not None:
            self._emit(RunFinished(self._status, len(self._failures)))
        elapsed_s = time.perf_counter() - started
        return RunResult(self._run, outputs, self._failures, self._counts, elapsed_s)

    def texts(self) -> Iterator[tuple[str, int, Mapping[int, str]]]:
        """Yields operator, row and outputs so far, by index, of every call that has begun any."""
        for ticket in self._tickets:
            texts = self._dispatcher.texts(ticket)
            if texts:
                yield ticket.operator, ticket.row, texts

    def stop(self, reason: str, status: str) -> None:
        """Gives up what is not done: it fails with the reason. Finished rows stay.

        Args:
            status: Of the run, in its last event.
        """
        is_over = self._is_over is not None and self._is_over.done()
        if is_over or self._stopped_because is not None:
            return
        self._stopped_because = reason
        self._stopped.set()
        self._status = status
        cells = [(ticket.operator, ticket.row) for ticket in self._tickets] + list(self._jobs)
        self._drop_work()
        for name, row in cells:
            self._fail(name, row, reason)
        self._advance()

    async def _register(self, schedule: WorkflowPlan) -> None:
        salt = self._options.cache_salt or None
        self._plans = tuple(
            msgspec.structs.replace(plan, cache_salt=salt) for plan in schedule.engine_plans()
        )
        self._digests = [plan.digest() for plan in self._plans]
        registered = asyncio.ensure_future(self._dispatcher.register(self._plans))
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            # An engine that does not answer must not keep a run that is to end.
            await asyncio.wait([registered, stopped], return_when=asyncio.FIRST_COMPLETED)
            if registered.done():
                registered.result()
        finally:
            registered.cancel()
            stopped.cancel()

    def _drop_work(self) -> None:
        tickets, self._tickets = self._tickets, {}
        jobs, self._jobs = self._jobs, {}
        for ticket in tickets:
            self._dispatcher.cancel(ticket)
        for job in jobs.values():
            job.cancel()

    def _advance(self) -> None:
        """Starts what is ready, a part at a time; values at hand are computed on the spot."""
        if self._is_advancing or self._is_over is None or self._is_over.done():
            return
        try:
            for _ in range(_CHUNK):
                cell = self._flow.next_ready()
                if cell is None:
                    break
                self._begin(cell)
        except Exception as error:  # a mistake of ours must end the run, not leave it waiting
            self._is_over.set_exception(error)
            return
        if self._flow.has_ready():
            self._is_advancing = True
            asyncio.get_running_loop().call_soon(self._go_on)
        elif not self._tickets and not self._jobs:
            self._is_over.set_result(None)

    def _go_on(self) -> None:
        self._is_advancing = False
        self._advance()

    def _begin(self, cell: Cell) -> None:
        name, row = cell
        operator = self._plan.by_name[name]
        if self._flow.is_doomed(cell):
            self._flow.fail(name, row)
            if isinstance(operator, Llm):
                self.num_calls_done += 1
            elif isinstance(operator, Output) and self._emit is not None:
                self._emit(RowDone(operator.key, row, None))
            return
        match operator:
            case Llm() | Lambda() if self._stopped_because is not None:
                self._fail(name, row, self._stopped_because)
            case Llm():
                self._call(operator, row)
            case Lambda():
                self._apply(operator, row)
            case Format():
                template = self._formats.get(name)
                if template is None:
                    template = self._formats[name] = self._flow.template(operator.text)
                self._flow.finish(name, row, template.fill(row))
            case Slice() | Concat() | Output():
                value = self._flow.passed_on(operator, row)
                self._flow.finish(name, row, value)
                if isinstance(operator, Output) and self._emit is not None:
                    self._emit(RowDone(operator.key, row, value))

    def _fail(self, name: str, row: int, reason: str) -> None:
        self._failures.append(RowFailure(name, row, reason))
        self._flow.fail(name, row)
        if name in self._counts:
            self.num_calls_done += 1
        if self._emit is not None:
            self._emit(RowFailed(name, row, reason))

    def _apply(self, operator: Lambda, row: int) -> None:
        name = operator.name
        values = [self._flow.read(row, source) for source in operator.arguments]
        arguments = [list(value) if isinstance(value, tuple) else value for value in values]

        def done(outcome: str | FunctionFailed) -> None:
            del self._jobs[name, row]
            if isinstance(outcome, FunctionFailed):
                self._fail(name, row, str(outcome))
            else:
                self._flow.finish(name, row, outcome)
                if self._emit is not None:
                    self._emit(FunctionFinished(name, row, outcome))
            self._advance()

        function = self._options.functions[operator.function]
        timeout_s = self._options.function_timeout_s
        job = FunctionJob(operator.function, function, arguments, timeout_s, done)
        self._jobs[name, row] = job
        self._threads.submit(job)

    def _call(self, operator: Llm, row: int) -> None:
        name = operator.name
        prompt = self._prompts.get(name)
        if prompt is None:
            prompt = self._prompts[name] = _Prompt(operator, self._compiled, self._flow)
        engine, context = self._place(name, row)
        call = ModelCall(prompt.call(row), context, self._options.cache_salt)
        plan = self._plans[engine] if self._plans else None
        self._tickets[self._dispatcher.submit(call, engine, self, name, row, plan)] = None

    def _place(self, name: str, row: int) -> tuple[int, WorkflowContext | None]:
        if self._schedule is None:
            return 0, None
        engine, rank = self._schedule.place(name, row)
        if not self._digests:
            return engine, None
        return engine, WorkflowContext(self._digests[engine], self._run, name, row=row, rank=rank)

    def started(self, ticket: Ticket, engine: int) -> None:
        """See ``Receiver``."""
        if self._emit is not None:
            self._emit(CallStarted(ticket.operator, ticket.row, engine))

    def finished(self, ticket: Ticket, outcome: ModelAnswer | EngineError, origin: Origin) -> None:
        """See ``Receiver``."""
        del self._tickets[ticket]
        if isinstance(outcome, EngineGone) and self._is_over is not None:
            # No engine is left, so no row fails by itself: all of them are made when it resumes.
            if not self._is_over.done():
                self._is_over.set_exception(outcome)
            return
        name, row = ticket.operator, ticket.row
        answer: ModelAnswer | None = None
        if isinstance(outcome, EngineError):
            self._fail(name, row, str(outcome))
        else:
            answer = outcome
            self._answered(ticket, answer, origin)
        if self._options.on_call is not None:
            self._options.on_call(name, row, answer)
        self._advance()

    def _answered(self, ticket: Ticket, answer: ModelAnswer, origin: Origin) -> None:
        name, row = ticket.operator, ticket.row
        operator = self._plan.by_name[name]
        assert isinstance(operator, Llm), f"{name!r} makes no calls"
        counts = self._counts[name]
        if origin == "engine":
            counts.num_calls += 1
            counts.num_prompt_tokens += answer.num_prompt_tokens
            counts.num_cached_tokens += answer.num_cached_tokens
            counts.num_output_tokens += answer.num_output_tokens
        elif origin == "shared":
            counts.num_shared += 1
        else:
            counts.num_cache_hits += 1
        texts = answer.texts
        if len(texts) != operator.sampling.n:
            expected = operator.sampling.n
            self._fail(name, row, f"{len(texts)} outputs came back, not n={expected}")
            return
        self.num_calls_done += 1
        self._flow.finish(name, row, texts[0] if len(texts) == 1 else texts)
        if self._emit is not None:
            if origin != "engine":
                engine = ticket.engine if origin == "shared" else None
                self._emit(CallFinished(name, row, texts, origin, engine=engine))
                return
            self._emit(
                CallFinished(
                    name,
                    row,
                    texts,
                    origin,
                    answer.num_prompt_tokens,
                    answer.num_cached_tokens,
                    answer.num_output_tokens,
                    answer.queue_ms,
                    answer.misses,
                    ticket.engine,
                )
            )


class _Prompt:
    """The calls of one operator, but for the values of the row."""

    def __init__(self, operator: Llm, compiled: CompiledPlan, flow: Dataflow) -> None:
        self._operator = operator
        self._messages: list[tuple[str, Template]] = []
        self._prompt: Template | None = None
        if operator.prompt is None:
            conversation = compiled.plan.conversation(operator.name)
            self._messages = [(m.role, flow.template(m.content)) for m in conversation]
        else:
            self._prompt = flow.template(operator.prompt)

    def call(self, row: int) -> Call:
        return Call(
            tuple([(role, template.fill(row)) for role, template in self._messages]),
            None if self._prompt is None else self._prompt.fill(row),
            self._operator.sampling,
            self._operator.model,
        )
