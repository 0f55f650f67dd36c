"""The dataflow processor: equal to the reference interpreter, and sane when things go wrong."""

import asyncio
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.workflows import iterative, mapreduce, reflection
from helium import function, graphs, ops
from helium.errors import EngineError, PlanError
from helium.optimizer.driver import optimize
from helium.plan.compiled_plan import bind
from helium.plan.interpret import interpret
from helium.planner import plan_workflow
from helium.runtime import ModelAnswer, run_plan
from helium.templates.tokenizer import WordTokenizer
from tests.property.random_plans import FUNCTIONS, fake_model, random_plan


class FakeEngine:
    """Answers like ``fake_model``, in a random-looking but fixed order, and keeps a record."""

    def __init__(self, model=fake_model, names=None):
        self.model = model
        self.requests = []
        self.plans = []
        self.num_open = 0
        self.max_open = 0

    async def register(self, plan):
        self.plans.append(plan)

    async def call(self, request):
        self.requests.append(request)
        self.num_open += 1
        self.max_open = max(self.max_open, self.num_open)
        try:
            for _ in range(len(self.requests) * 7 % 5):
                await asyncio.sleep(0)
            context = request.context
            operator, row = (context.operator, context.row) if context else ("", 0)
            return ModelAnswer(self.model(request.call, operator, row), 10, 4, 2)
        finally:
            self.num_open -= 1


def plan_of(compiled, num_engines=1):
    return plan_workflow(compiled, WordTokenizer(), num_engines=num_engines)


def run(compiled, engine=None, **options):
    return asyncio.run(run_plan(compiled, engine or FakeEngine(), **options))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.integers(0, 12), st.booleans())
def test_a_run_equals_the_reference_interpreter(seed, size, is_optimized):
    case = random_plan(seed, size)
    compiled = bind(case.plan, case.batch, functions=FUNCTIONS)
    # Without a schedule the fake engine cannot tell calls apart, so every call draws alike.
    model = lambda call, operator, row: fake_model(call, "", 0)  # noqa: E731
    expected = interpret(compiled, model, FUNCTIONS)
    chosen = optimize(compiled).compiled if is_optimized else compiled
    result = run(chosen, FakeEngine(model), functions=FUNCTIONS)
    assert result.outputs == expected
    assert result.failures == []


@pytest.mark.parametrize(
    "build", [mapreduce.build_mmlu, iterative.build_amazon, reflection.build_tatqa]
)
@pytest.mark.parametrize("num_engines", [1, 3])
def test_a_scheduled_run_places_every_call_and_changes_no_output(build, num_engines):
    workload = build(4, scale=0.1)
    compiled = workload.graph.compile(**workload.batch)
    expected = interpret(compiled, fake_model)
    optimized = optimize(compiled).compiled
    schedule = plan_of(optimized, num_engines)
    engines = [FakeEngine() for _ in range(num_engines)]
    result = run(schedule.compiled, engines, schedule=schedule)
    assert result.outputs == expected
    for number, engine in enumerate(engines):
        (registered,) = engine.plans
        for request in engine.requests:
            context = request.context
            assert context.plan == registered.digest()
            assert (number, context.rank) == schedule.place(context.operator, context.row)
    assert result.total.num_calls == sum(len(engine.requests) for engine in engines)


def two_steps(n=1):
    question = ops.placeholder("question")
    draft = ops.llm([ops.Msg("user", question)], name="draft", n=n)
    return question, draft


def test_independent_calls_are_all_under_way_at_once():
    _, draft = two_steps()
    compiled = graphs.build({"out": draft}).compile(question=[f"q{i}" for i in range(40)])
    engine = FakeEngine()
    run(compiled, engine)
    assert engine.max_open > 10


def test_rows_run_on_without_waiting_for_other_rows():
    """A second step of a fast row starts while the first step of a slow row is still running."""
    _, draft = two_steps()
    final = ops.llm([ops.Msg("user", ["shorten ", draft])], name="final")
    compiled = graphs.build({"out": final}).compile(question=["slow", "fast"])
    order = []

    class Engine(FakeEngine):
        async def call(self, request):
            text = request.call.messages[0][1]
            while text == "slow" and "shorten fast" not in order:
                await asyncio.sleep(0)
            order.append(text)
            return ModelAnswer((text,))

    run(compiled, Engine())
    assert order == ["fast", "shorten fast", "slow", "shorten slow"]


def test_one_bad_row_fails_alone_and_takes_its_dependents_along():
    _, draft = two_steps()
    final = ops.llm([ops.Msg("user", ["shorten ", draft])], name="final")
    rows = [f"q{i}" for i in range(50)]
    compiled = graphs.build({"draft": draft, "final": final}).compile(question=rows)

    class Engine(FakeEngine):
        async def call(self, request):
            if request.call.messages[0][1] == "q17":
                raise EngineError("the prompt is too long")
            return await super().call(request)

    result = run(compiled, Engine())
    assert [row for row, value in enumerate(result.outputs["final"]) if value is None] == [17]
    assert [row for row, value in enumerate(result.outputs["draft"]) if value is None] == [17]
    (failure,) = result.failures
    assert (failure.operator, failure.row, failure.reason) == (
        "draft",
        17,
        "the prompt is too long",
    )


@function(name="processor_test.raises")
def raises(text: str) -> str:
    raise KeyError(text)


@function(name="processor_test.sleeps")
def sleeps(text: str) -> str:
    released.wait(10)
    return text


@function(name="processor_test.returns_a_number")
def returns_a_number(text: str) -> str:
    return 3


released = threading.Event()


@pytest.mark.parametrize(
    ("misbehaving", "reason"),
    [
        (raises, "raised KeyError: 'q'"),
        (returns_a_number, "returned int, expected str"),
        (sleeps, "took more than 0.05 s"),
    ],
)
def test_a_user_function_that_misbehaves_fails_its_row_with_the_reason(misbehaving, reason):
    question, draft = two_steps()
    applied = misbehaving(question)
    compiled = graphs.build({"f": applied, "d": draft}).compile(question=["q"])
    released.clear()
    timer = threading.Timer(0.5, released.set)
    timer.start()
    result = run(compiled, function_timeout_s=0.05)
    timer.cancel()
    released.set()
    assert result.outputs["f"] == [None] and result.outputs["d"][0]
    assert reason in result.failures[0].reason


def test_a_slow_function_does_not_hold_up_the_calls():
    question, draft = two_steps()
    applied = sleeps(question)
    compiled = graphs.build({"f": applied, "d": draft}).compile(question=["q"])
    released.clear()

    class Engine(FakeEngine):
        async def call(self, request):
            released.set()
            return await super().call(request)

    started = time.monotonic()
    result = run(compiled, Engine())
    assert result.failures == [] and result.outputs["f"] == ["q"]
    assert time.monotonic() - started < 8


def test_a_wrong_number_of_outputs_is_a_failure():
    _, draft = two_steps()
    compiled = graphs.build({"d": draft}).compile(question=["q"])

    class Engine(FakeEngine):
        async def call(self, request):
            return ModelAnswer(("a", "b"))

    result = run(compiled, Engine())
    assert "2 outputs came back, not n=1" in result.failures[0].reason


def test_cancelling_a_run_cancels_every_call_under_way():
    _, draft = two_steps()
    compiled = graphs.build({"d": draft}).compile(question=["a", "b", "c"])
    cancelled = []

    class Engine(FakeEngine):
        async def call(self, request):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(request)
                raise

    async def main():
        task = asyncio.create_task(run_plan(compiled, Engine()))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert len(cancelled) == 3


def test_the_tenant_goes_with_every_call():
    _, draft = two_steps()
    compiled = graphs.build({"d": draft}).compile(question=["a", "b"])
    engine = FakeEngine()
    run(compiled, engine, cache_salt="tenant-1")
    assert {request.cache_salt for request in engine.requests} == {"tenant-1"}


def test_a_schedule_for_other_engines_is_refused():
    _, draft = two_steps()
    compiled = graphs.build({"d": draft}).compile(question=["a"])
    with pytest.raises(PlanError, match="for 2 engines, 1 were given"):
        run(compiled, schedule=plan_of(compiled, num_engines=2))
