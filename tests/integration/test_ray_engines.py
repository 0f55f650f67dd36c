"""Two engines in actors of a local Ray: outputs are one engine's, also when an actor is killed."""

import asyncio
import contextlib
import os
import signal

import pytest

from benchmarks.workflows import mapreduce
from helium.errors import EngineError
from helium.runtime import EngineGone, RetryPolicy, RunStore, Runtime, RuntimeOptions
from helium.templates.tokenizer import TransformersTokenizer
from tests.in_process_engine import in_process_llm
from tests.integration.conftest import FAST_ENGINE_ARGUMENTS, FAST_ENGINE_ENVIRONMENT

pytestmark = [pytest.mark.engine, pytest.mark.slow]

ARGUMENTS = FAST_ENGINE_ARGUMENTS | {"kv_cache_memory_bytes": 32 << 20}
WORKLOAD = mapreduce.build_mmlu(6, scale=0.2, max_tokens=12)
NUM_CALLS = 6 * 8
"""Seven of the fourteen experts are distinct."""


@pytest.fixture(scope="module")
def ray():
    """Ray, ended afterwards whatever the engines do; tests are skipped where it cannot start."""
    module = pytest.importorskip("ray", reason="Ray is not installed")
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("RAY_ADDRESS", raising=False)
        environment.setenv("RAY_worker_niceness", "0")  # beside busy processes they would starve
        for name, value in FAST_ENGINE_ENVIRONMENT.items():
            environment.setenv(name, value)
        try:
            module.init(
                address="local", num_cpus=2, include_dashboard=False, object_store_memory=80_000_000
            )
        except Exception as error:  # a machine's own limits: ports, shared memory, processes
            pytest.skip(f"Ray does not start here: {type(error).__name__}: {error}")
        yield module
        module.shutdown()


@pytest.fixture(scope="module")
def expected(tiny_model, ray):
    """The outputs of one engine without Helium; it has ended before Ray starts."""
    with in_process_llm(tiny_model, kv_cache_memory_bytes=32 << 20) as llm:
        return llm.run_workflow(WORKLOAD.graph, WORKLOAD.batch, use_tqdm=False).outputs


@contextlib.contextmanager
def two_engines(model, **arguments):
    from vllm_helium.ray_engines import ray_engines

    engines = ray_engines(model, 2, **(ARGUMENTS | arguments))
    try:
        yield engines
    finally:
        for engine in engines:
            asyncio.run(engine.close())


def run_on(backends, model, **options):
    import transformers

    tokenizer = TransformersTokenizer(transformers.AutoTokenizer.from_pretrained(model))

    async def main():
        async with Runtime(backends, tokenizer, options=RuntimeOptions(**options)) as runtime:
            return await runtime.run(WORKLOAD.graph, WORKLOAD.batch)

    return asyncio.run(main())


class Watched:
    """Passes calls on; the actor's process is killed as call number ``kill_at`` is made.

    Attributes:
        errors: What the actor's calls failed with.
        num_answers: Calls it answered.
    """

    def __init__(self, engine, kill_at=None):
        self.engine = engine
        self.kill_at = kill_at
        self.errors = []
        self.num_plans = self.num_calls = self.num_answers = 0

    async def register(self, plan):
        self.num_plans += 1
        await self.engine.register(plan)

    async def call(self, request):
        self.num_calls += 1
        if self.num_calls == self.kill_at:
            os.kill(self.engine.pid, signal.SIGKILL)
        try:
            answer = await self.engine.call(request)
        except EngineError as error:
            self.errors.append(error)
            raise
        self.num_answers += 1
        return answer


def test_two_actors_give_one_engines_outputs(tiny_model, ray, expected):
    with two_engines(tiny_model) as engines:
        watched = [Watched(engine) for engine in engines]
        result = run_on(watched, tiny_model)
    assert result.failures == [] and result.outputs == expected
    assert all(engine.num_answers and engine.num_plans for engine in watched)
    assert sum(engine.num_answers for engine in watched) == result.total.num_calls


def test_a_killed_actors_calls_are_made_by_the_other_one(tiny_model, ray, expected):
    with two_engines(tiny_model) as engines:
        watched = [Watched(engines[0], kill_at=8), Watched(engines[1])]
        result = run_on(watched, tiny_model, max_open_calls=4)
        dying, living = watched
        assert result.failures == [] and result.outputs == expected
        assert dying.errors and {type(error) for error in dying.errors} <= {EngineGone}
        assert 0 < dying.num_answers < 8 and living.errors == []
        with pytest.raises(EngineGone):
            asyncio.run(asyncio.wait_for(register_again(engines[0]), 120))


async def register_again(engine):
    from helium.protocol import EnginePlan, PlanOperator

    operator = PlanOperator(name="a", rank=0)
    await engine.register(EnginePlan(version=1, workflow="w", operators=(operator,)))


def test_a_restarted_actor_goes_on_alone(tiny_model, ray, expected):
    from vllm_helium.ray_engines import ray_engines

    (engine,) = ray_engines(tiny_model, 1, max_restarts=1, **ARGUMENTS)
    try:
        watched = Watched(engine, kill_at=8)
        retries = RetryPolicy(max_attempts=60, base_delay_s=1.0, max_delay_s=4.0)
        result = run_on([watched], tiny_model, max_open_calls=4, retries=retries)
    finally:
        asyncio.run(engine.close())
    assert result.failures == [] and result.outputs == expected
    assert watched.errors and watched.num_plans > 1


def test_an_engine_that_does_not_start_says_why(tmp_path, ray):
    from vllm_helium.ray_engines import ray_engines

    with pytest.raises(EngineError, match=r"(?s)did not start: .*config\.json"):
        ray_engines(tmp_path, 1, **ARGUMENTS)


def test_a_run_whose_only_actor_died_goes_on_with_another_one(tiny_model, ray, expected, tmp_path):
    import transformers

    tokenizer = TransformersTokenizer(transformers.AutoTokenizer.from_pretrained(tiny_model))
    answers = []

    async def sitting(engine, resume):
        with contextlib.closing(RunStore(tmp_path / "runs.db")) as store:
            async with Runtime(
                engine, tokenizer, store=store, options=RuntimeOptions(max_open_calls=4)
            ) as runtime:
                if resume:
                    run = await runtime.resume("r")
                else:
                    run = await runtime.submit(WORKLOAD.graph, WORKLOAD.batch, run="r")
                try:
                    return await run.result()
                finally:
                    answers.append(engine.num_answers)

    with two_engines(tiny_model) as (first, second):
        with pytest.raises(EngineGone):
            asyncio.run(sitting(Watched(first, kill_at=8), resume=False))
        result = asyncio.run(sitting(Watched(second), resume=True))
    assert result.failures == [] and result.outputs == expected
    # What the first one answered is not asked again.
    assert 0 < answers[0] < 8 and sum(answers) == NUM_CALLS
