"""Equal calls are made once, unequal ones never mix, failed ones are made again."""

import asyncio

import msgspec
import pytest

from helium import graphs, ops
from helium.errors import ConfigError, EngineError
from helium.plan.calls import Call
from helium.plan.operators import Sampling
from helium.runtime import EngineGone, EngineUnavailable, ModelAnswer, ModelCall
from helium.runtime.dispatcher import Dispatcher
from helium.runtime.execution import Execution, RunOptions
from helium.runtime.function_threads import FunctionThreads
from helium.runtime.retries import RetryBudget, RetryPolicy
from tests.unit.runtime.engines import Engine, echo
from tests.unit.runtime.virtual_time import run

GREEDY = Sampling(max_tokens=8)

DIFFERENT = [
    Call((("user", "a"),), None, GREEDY, None),
    Call((("system", "a"),), None, GREEDY, None),
    Call((), "a", GREEDY, None),
    Call((("user", "a"),), None, GREEDY, "adapter"),
    Call((("user", "a "),), None, GREEDY, None),
    Call((("user", "a"), ("user", "")), None, GREEDY, None),
    *(
        Call((("user", "a"),), None, msgspec.structs.replace(GREEDY, **change), None)
        for change in [
            {"max_tokens": None},
            {"n": 2},
            {"stop": ("x",)},
            {"stop": ("x", "y")},
            {"stop": ("y", "x")},
            {"seed": 0},
            {"seed": 1},
            {"temperature": 1.0, "seed": 1},
            {"temperature": 0.5, "seed": 1},
            {"top_p": 0.5},
            {"top_k": 3},
            {"min_p": 0.1},
            {"min_tokens": 2},
            {"presence_penalty": 0.1},
            {"frequency_penalty": 0.1},
            {"repetition_penalty": 1.1},
            {"ignore_eos": True},
            {"structured": {"choice": ["yes", "no"]}},
            {"structured": {"choice": ["no", "yes"]}},
            {"structured": {"json": {"a": 1, "b": 2}}},
            {"structured": {"json": {"b": 2, "a": 1}}},
        ]
    ),
]


class Waiter:
    """A receiver for single calls."""

    def __init__(self):
        self.outcomes = []

    def started(self, ticket, engine):
        pass

    def finished(self, ticket, outcome, origin):
        self.outcomes.append((outcome, origin))


def chat(text, sampling=GREEDY, salt=None):
    return ModelCall(Call((("user", text),), None, sampling, None), None, salt)


def outcomes_of(calls, engine, **options):
    async def main():
        dispatcher = Dispatcher(engine, **options)
        waiters = [Waiter() for _ in calls]
        for call, waiter in zip(calls, waiters, strict=True):
            dispatcher.submit(call, 0, waiter)
        await asyncio.sleep(1000)
        await dispatcher.close()
        return [outcome for waiter in waiters for outcome in waiter.outcomes]

    return run(main())[0]


def test_equal_deterministic_calls_are_made_once_and_answered_all():
    engine = Engine(seconds=1)
    outcomes = outcomes_of([chat("a") for _ in range(50)], engine)
    assert len(engine.requests) == 1
    assert [origin for _, origin in outcomes] == ["engine"] + ["shared"] * 49
    assert {answer.texts for answer, _ in outcomes} == {echo(chat("a").call)}


def test_a_seeded_call_is_deterministic_too():
    engine = Engine(seconds=1)
    outcomes_of([chat("a", Sampling(temperature=1, seed=7)) for _ in range(3)], engine)
    assert len(engine.requests) == 1


def test_calls_drawn_at_random_are_all_made():
    engine = Engine(seconds=1)
    outcomes_of([chat("a", Sampling(temperature=1)) for _ in range(3)], engine)
    assert len(engine.requests) == 3


def test_calls_that_differ_in_anything_never_mix():
    engine = Engine(seconds=1)
    outcomes = outcomes_of([ModelCall(call) for call in DIFFERENT], engine)
    assert len(engine.requests) == len(DIFFERENT)
    assert [outcome.texts for outcome, _ in outcomes] == [echo(call) for call in DIFFERENT]


def test_tenants_never_mix():
    engine = Engine(seconds=1)
    outcomes_of([chat("a", salt=salt) for salt in (None, "", "t1", "t2", "t1")], engine)
    assert sorted(str(r.cache_salt) for r in engine.requests) == ["", "None", "t1", "t2"]


def test_calls_after_one_another_are_made_again():
    engine = Engine(seconds=1)

    async def main():
        dispatcher = Dispatcher(engine)
        for _ in range(2):
            dispatcher.submit(chat("a"), 0, Waiter())
            await asyncio.sleep(2)
        await dispatcher.close()

    run(main())
    assert len(engine.requests) == 2


@pytest.mark.parametrize("gone", [{0}, {1}, {0, 1}, {1, 2}])
def test_who_stops_waiting_does_not_cancel_a_call_others_wait_for(gone):
    engine = Engine(seconds=1)

    async def main():
        dispatcher = Dispatcher(engine)
        waiters = [Waiter() for _ in range(3)]
        tickets = [dispatcher.submit(chat("a"), 0, waiter) for waiter in waiters]
        await asyncio.sleep(0.5)
        for number in gone:
            dispatcher.cancel(tickets[number])
            dispatcher.cancel(tickets[number])
        await asyncio.sleep(1)
        await dispatcher.close()
        return [len(waiter.outcomes) for waiter in waiters]

    assert run(main())[0] == [number not in gone for number in range(3)]
    assert (len(engine.requests), engine.num_cancelled) == (1, 0)


@pytest.mark.parametrize("delay", [0, 0.5])
def test_a_call_nobody_waits_for_is_cancelled_and_can_be_made_anew(delay):
    engine = Engine(seconds=1)

    async def main():
        dispatcher = Dispatcher(engine)
        tickets = [dispatcher.submit(chat("a"), 0, Waiter()) for _ in range(2)]
        await asyncio.sleep(delay)
        for ticket in tickets:
            dispatcher.cancel(ticket)
        late = Waiter()
        dispatcher.submit(chat("a"), 0, late)
        await asyncio.sleep(5)
        await dispatcher.close()
        return late.outcomes

    ((outcome, origin),) = run(main())[0]
    assert (outcome.texts, origin) == (echo(chat("a").call), "engine")
    assert engine.num_cancelled == len(engine.requests) - 1 and engine.num_open == 0


def one_call(rows, sampling=GREEDY):
    question = ops.placeholder("question")
    draft = ops.llm([ops.Msg("user", question)], name="draft", sampling=sampling)
    return graphs.build({"out": draft}).compile(question=rows)


def together(compileds, dispatcher, **options):
    async def main():
        threads = FunctionThreads()
        executions = [
            Execution(compiled, dispatcher, threads, f"run-{number}", None, RunOptions(**options))
            for number, compiled in enumerate(compileds)
        ]
        results = await asyncio.gather(*(execution.execute() for execution in executions))
        await threads.close()
        await dispatcher.close()
        return results

    return run(main())


def test_four_runs_of_one_call_of_a_second_take_a_second():
    engine = Engine(seconds=1)
    results, seconds = together([one_call([f"q{i}"]) for i in range(4)], Dispatcher(engine))
    assert seconds == pytest.approx(1.0, abs=0.01)
    assert len(engine.requests) == 4 and not any(result.failures for result in results)


def test_equal_calls_of_several_runs_are_made_once():
    engine = Engine(seconds=1)
    results, _ = together([one_call(["a", "b"]) for _ in range(3)], Dispatcher(engine))
    assert len(engine.requests) == 2
    assert results[0].outputs == results[1].outputs == results[2].outputs
    assert sum(result.total.num_calls for result in results) == 2
    assert sum(result.total.num_shared for result in results) == 4


def test_duplicate_rows_are_called_once():
    engine = Engine(seconds=1)
    ((result,), _) = together([one_call(["a", "b", "a", "a"])], Dispatcher(engine))
    assert len(engine.requests) == 2
    outputs = result.outputs["out"]
    assert outputs[0] == outputs[2] == outputs[3] != outputs[1]


def test_a_prompt_that_is_a_strict_prefix_of_another_is_a_call_of_its_own():
    engine = Engine(seconds=1)
    ((result,), _) = together([one_call(["abc", "abcd", "ab"])], Dispatcher(engine))
    assert [output.split("|")[0] for output in result.outputs["out"]] == ["abc", "abcd", "ab"]


def test_cancelling_one_run_leaves_the_calls_another_shares():
    engine = Engine(seconds=1)

    async def main():
        dispatcher, threads = Dispatcher(engine), FunctionThreads()
        runs = [
            asyncio.ensure_future(Execution(one_call(rows), dispatcher, threads, "run").execute())
            for rows in (["a", "b"], ["b", "c"])
        ]
        await asyncio.sleep(0.5)
        runs[0].cancel()
        result = await runs[1]
        await dispatcher.close()
        return result

    result, seconds = run(main())
    assert result.failures == [] and seconds == pytest.approx(1, abs=0.01)
    assert (len(engine.requests), engine.num_cancelled) == (3, 1)


def test_no_more_calls_are_open_than_an_engine_may_have():
    engine = Engine(seconds=1)
    rows = [f"q{i}" for i in range(10)]
    _, seconds = together([one_call(rows)], Dispatcher(engine, max_open_calls=4))
    assert engine.max_open == 4 and seconds == pytest.approx(3, abs=0.01)


class Flaky(Engine):
    """Fails the first ``num_failures`` attempts of every call."""

    def __init__(self, num_failures, error=None):
        super().__init__(answer=self.fail_at_first)
        self.num_failures = num_failures
        self.error = error or EngineUnavailable("no connection")
        self.attempts = {}

    def fail_at_first(self, call):
        key = msgspec.json.encode(call)
        self.attempts[key] = self.attempts.get(key, 0) + 1
        if self.attempts[key] <= self.num_failures:
            raise self.error
        return echo(call)


FAST = RetryPolicy(max_attempts=4, base_delay_s=1, max_delay_s=3)


def test_an_engine_that_comes_back_costs_a_pause_but_no_row():
    engine = Flaky(3)
    ((result,), seconds) = together([one_call(["a"])], Dispatcher(engine, retries=FAST))
    assert result.failures == [] and len(engine.requests) == 4
    assert 0.5 + 1 + 1.5 <= seconds <= 1 + 2 + 3


def test_a_call_that_keeps_failing_fails_with_the_last_reason():
    engine = Flaky(99)
    ((result,), _) = together([one_call(["a"])], Dispatcher(engine, retries=FAST))
    assert result.failures[0].reason == "no connection; gave up after 4 attempt(s)"


def test_an_error_for_good_is_not_tried_again():
    engine = Flaky(99, EngineError("the prompt is too long"))
    ((result,), _) = together([one_call(["a"])], Dispatcher(engine, retries=FAST))
    assert len(engine.requests) == 1 and result.failures[0].reason == "the prompt is too long"


def test_an_unexpected_error_of_a_backend_fails_the_row_alone():
    def answer(call):
        if call.messages[-1][1] == "bad":
            raise KeyError("oops")
        return echo(call)

    engine = Engine(answer=answer)
    ((result,), _) = together([one_call(["good", "bad"])], Dispatcher(engine, retries=FAST))
    assert [value is None for value in result.outputs["out"]] == [False, True]
    assert "KeyError" in result.failures[0].reason and len(engine.requests) == 2


def test_the_budget_bounds_the_retries_of_all_calls_together():
    engine = Flaky(99)
    policy = RetryPolicy(max_attempts=10, base_delay_s=0, budget_reserve=5, budget_ratio=0.5)
    rows = [f"q{i}" for i in range(20)]
    ((result,), _) = together([one_call(rows)], Dispatcher(engine, retries=policy))
    assert len(engine.requests) == 20 + 5 + 10
    assert all("retry budget is used up" in failure.reason for failure in result.failures)
    assert len(result.failures) == 20


class Away(Engine):
    """Is away from ``since`` to ``until``, in seconds of the loop; what is under way fails too."""

    def __init__(self, since, until):
        super().__init__(1.0)
        self.since, self.until = since, until
        self.num_refused = 0

    def is_away(self):
        return self.since <= asyncio.get_running_loop().time() < self.until

    async def call(self, request):
        if not self.is_away():
            answer = await super().call(request)
            if not self.is_away():
                return answer
        self.num_refused += 1
        await asyncio.sleep(0.001)
        raise EngineUnavailable("connection refused")


def test_an_engine_that_is_away_for_a_while_costs_a_large_run_no_row():
    rows = [f"q{i}" for i in range(500)]
    engine = Away(1.5, 9.0)
    dispatcher = Dispatcher(engine, max_open_calls=100)
    ((result,), seconds) = together([one_call(rows)], dispatcher)
    assert result.failures == []
    assert seconds < 9 + 8 + 6, "the longest pause, and the calls"
    # Those under way, and then one at a time.
    assert engine.num_refused < 100 + 10


def test_an_engine_that_stays_away_fails_all_calls_but_is_not_sent_them_all():
    rows = [f"q{i}" for i in range(500)]
    engine = Away(1.5, 1e9)
    dispatcher = Dispatcher(engine, max_open_calls=100)
    ((result,), seconds) = together([one_call(rows)], dispatcher)
    assert len(result.failures) == 400
    assert {failure.reason.split(";")[0] for failure in result.failures} == {"connection refused"}
    assert engine.num_refused < 100 + 20 and seconds < 16 + 4 * 30


def test_an_engine_that_came_back_is_used_again_beside_the_others():
    engines = [Away(0.0, 3.0), Engine(1.0)]
    dispatcher = Dispatcher(engines, max_open_calls=1)

    async def main():
        waiters = [Waiter() for _ in range(40)]
        for number, waiter in enumerate(waiters):
            dispatcher.submit(chat(f"q{number}"), number % 2, waiter)
            await asyncio.sleep(0.5)
        await asyncio.sleep(100)
        await dispatcher.close()
        return [outcome for waiter in waiters for outcome, _ in waiter.outcomes]

    outcomes = run(main())[0]
    assert all(isinstance(outcome, ModelAnswer) for outcome in outcomes) and len(outcomes) == 40
    assert engines[0].num_refused <= 5 and len(engines[0].requests) > 10


def test_the_calls_of_a_dead_engine_wait_for_one_that_is_away():
    class Dead(Engine):
        async def call(self, request):
            await asyncio.sleep(0.5)
            raise EngineGone("it died")

    away = Away(0.0, 3.0)

    async def main():
        dispatcher = Dispatcher([Dead(), away])
        waiters = [Waiter() for _ in range(8)]
        for number, waiter in enumerate(waiters):
            dispatcher.submit(chat(f"q{number}"), number % 2, waiter)
        await asyncio.sleep(60)
        await dispatcher.close()
        return [outcome for waiter in waiters for outcome, _ in waiter.outcomes]

    outcomes = run(main())[0]
    assert len(outcomes) == 8 and all(isinstance(outcome, ModelAnswer) for outcome in outcomes)


def test_who_gives_up_while_an_engine_is_tried_keeps_nobody_waiting():
    engine = Away(0.5, 3.0)

    async def main():
        dispatcher = Dispatcher(engine)
        waiters = [Waiter() for _ in range(9)]
        tickets = [dispatcher.submit(chat(f"q{i}"), 0, w) for i, w in enumerate(waiters)]
        for ticket in tickets[:8]:
            await asyncio.sleep(0.5)
            dispatcher.cancel(ticket)
        await asyncio.sleep(60)
        await dispatcher.close()
        return [len(waiter.outcomes) for waiter in waiters]

    assert run(main())[0] == [0] * 8 + [1]


def test_a_call_that_takes_too_long_is_given_up_and_made_again():
    engine = Engine(seconds=10)
    policy = RetryPolicy(max_attempts=2, base_delay_s=1)
    dispatcher = Dispatcher(engine, retries=policy, call_timeout_s=2)
    ((result,), seconds) = together([one_call(["a"])], dispatcher)
    assert "took more than 2 s" in result.failures[0].reason
    assert engine.num_cancelled == 2 and 4.5 <= seconds <= 5


def test_a_retry_goes_to_the_next_engine():
    dead, alive = Flaky(99), Engine()
    ((result,), _) = together([one_call(["a", "b"])], Dispatcher([dead, alive], retries=FAST))
    assert result.failures == []
    assert (len(dead.requests), len(alive.requests)) == (2, 2)


def test_a_run_that_takes_too_long_keeps_what_is_done_and_fails_the_rest():
    class Engines(Engine):
        async def call(self, request):
            self.seconds = 1 if request.call.messages[-1][1] == "fast" else 100
            return await super().call(request)

    engine = Engines()
    compiled = one_call(["fast", "slow"])
    ((result,), seconds) = together([compiled], Dispatcher(engine), timeout_s=5)
    assert seconds == pytest.approx(5, abs=0.01) and engine.num_cancelled == 1
    assert result.outputs["out"][0] and result.outputs["out"][1] is None
    assert result.failures[0].reason == "the run took more than 5 s"


def test_back_off_doubles_up_to_its_limit():
    policy = RetryPolicy(base_delay_s=1, max_delay_s=5)
    for attempt, longest in [(1, 1), (2, 2), (3, 4), (4, 5), (5, 5), (5000, 5)]:
        assert longest / 2 <= policy.delay_s(attempt) <= longest


def test_a_budget_is_earned_by_calls():
    budget = RetryBudget(RetryPolicy(budget_reserve=1, budget_ratio=0.5))
    assert [budget.spend(), budget.spend()] == [True, False]
    budget.earn()
    budget.earn()
    assert [budget.spend(), budget.spend()] == [True, False]


@pytest.mark.parametrize("field", ["base_delay_s", "max_delay_s", "budget_reserve"])
def test_a_negative_setting_is_refused(field):
    with pytest.raises(ConfigError, match=field):
        RetryPolicy(**{field: -1})


def test_a_runtime_without_engines_is_refused():
    with pytest.raises(ConfigError, match="no engine"):
        Dispatcher([])
