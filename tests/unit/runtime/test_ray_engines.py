"""A Ray actor is an engine like another: its answers, refusals and death mean what they mean here.

The actor's handle is a fake that runs the actor's side on this event loop; Ray is not started.
"""

import asyncio
import importlib
import os

import msgspec
import pytest

from benchmarks.workflows import mapreduce
from helium.errors import ConfigError, EngineError
from helium.plan.calls import Call
from helium.plan.operators import Sampling
from helium.protocol import EnginePlan, PlanOperator, WorkflowContext
from helium.runtime import EngineGone, EngineUnavailable, ModelCall, invoke_async
from helium.templates.tokenizer import WordTokenizer
from tests.unit.runtime.engines import Engine
from tests.unit.runtime.virtual_time import run
from vllm_helium.ray_actor import serve_call, serve_register
from vllm_helium.ray_engines import RayBackend, ray_engines

PLAN = EnginePlan(version=1, workflow="w", operators=(PlanOperator(name="a", rank=0),))


class RayActorError(Exception):
    """Stands for Ray's, which is known by its name."""


class ActorDiedError(RayActorError):
    """Of an actor that does not come back."""


class ActorUnavailableError(RayActorError):
    """Of an actor that is being restarted."""


class Method:
    def __init__(self, serve):
        self._serve = serve

    def remote(self, encoded):
        assert type(encoded) is bytes
        return asyncio.ensure_future(self._checked(encoded))

    async def _checked(self, encoded):
        reply = await self._serve(encoded)
        assert type(reply) is bytes
        return reply


class Actor:
    """A handle whose actor holds ``engine``; ``dies`` is asked before every call."""

    def __init__(self, engine, dies=lambda engine: None):
        self.engine = engine
        self.dies = dies
        self.call = Method(self._call)
        self.register = Method(lambda encoded: serve_register(engine, encoded))

    async def _call(self, encoded):
        error = self.dies(self.engine)
        if error is not None:
            raise error
        return await serve_call(self.engine, encoded)


def request(text="hello", **more):
    sampling = Sampling(max_tokens=3, stop=("x",), temperature=0.25)
    return ModelCall(Call((("system", "ünï"), ("user", text)), None, sampling, None), **more)


def raises(error):
    def answer(_):
        raise error

    return answer


def test_a_call_and_its_answer_cross_unchanged():
    engine = Engine()
    context = WorkflowContext(plan="f" * 64, run="r", operator="a", row=3, segment_lengths=(2, 1))
    sent = request(context=context, cache_salt="tenant")
    answer, _ = run(RayBackend(Actor(engine)).call(sent))
    direct, _ = run(Engine().call(sent))
    assert engine.requests == [sent] and answer == direct


def test_a_plan_crosses_with_its_digest():
    engine = Engine()
    run(RayBackend(Actor(engine)).register(PLAN))
    assert [plan.digest() for plan in engine.plans] == [PLAN.digest()]


@pytest.mark.parametrize("kind", [EngineError, EngineUnavailable])
def test_a_refusal_keeps_its_kind_and_words(kind):
    backend = RayBackend(Actor(Engine(answer=raises(kind("too long")))))
    with pytest.raises(EngineError, match=r"^too long$") as caught:
        run(backend.call(request()))
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ActorDiedError("it died\nnode: 7"), EngineGone),
        (RayActorError("it died"), EngineGone),
        (ActorUnavailableError("restarting"), EngineUnavailable),
        (ValueError("else"), EngineError),
    ],
)
def test_what_ray_says_of_an_actor_is_said_of_the_engine(error, kind):
    backend = RayBackend(Actor(Engine(), dies=lambda _: error), name="engine 1")
    with pytest.raises(EngineError, match=f"^engine 1: {type(error).__name__}: .*$") as caught:
        run(backend.call(request()))
    assert type(caught.value) is kind and "\n" not in str(caught.value)


def test_rays_own_errors_have_the_names_that_are_looked_for():
    exceptions = pytest.importorskip("ray.exceptions", reason="Ray is not installed")
    backend = RayBackend(None)
    died = exceptions.ActorDiedError()
    away = exceptions.ActorUnavailableError("restarting", None)
    assert type(backend._engine_error(died)) is EngineGone
    assert type(backend._engine_error(away)) is EngineUnavailable
    assert type(backend._engine_error(exceptions.RaySystemError("x"))) is EngineError


def test_a_dead_engine_is_no_reply_so_that_its_actor_ends():
    engine = Engine(answer=raises(EngineGone("CUDA error")))
    with pytest.raises(EngineGone, match="CUDA error"):
        run(serve_call(engine, msgspec.json.encode(request())))


def test_bytes_that_are_no_message_are_refused_and_the_actor_goes_on():
    engine = Engine()
    for serve in (serve_call, serve_register):
        for encoded in (b"", b"{", b'{"call": 3}', b"\xff"):
            reply = msgspec.json.decode(run(serve(engine, encoded))[0])
            assert reply["error"] and "answer" not in reply
    assert engine.requests == engine.plans == []


def test_a_cancelled_call_is_cancelled_in_the_actor():
    engine = Engine(seconds=1_000)

    async def main():
        backend = RayBackend(Actor(engine), cancel=lambda reference: cancelled.append(reference))
        task = asyncio.create_task(backend.call(request()))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    cancelled = []
    run(main())
    assert len(cancelled) == 1


def test_closing_kills_the_actor():
    killed, actor = [], Actor(Engine())
    run(RayBackend(actor, kill=killed.append).close())
    assert killed == [actor]


def test_a_dead_actors_calls_are_made_by_the_other_one():
    workload = mapreduce.build_mmlu(3, scale=0.1)

    def outputs(backends):
        result, _ = run(invoke_async(workload.graph, workload.batch, backends, WordTokenizer()))
        assert result.failures == []
        return result.outputs

    def dies(engine):
        return ActorDiedError("it died") if len(engine.requests) >= 4 else None

    dying, living = Actor(Engine(1.0), dies), Actor(Engine(1.0))
    expected = outputs([Engine(1.0)])
    assert outputs([RayBackend(dying), RayBackend(living)]) == expected
    assert len(dying.engine.requests) == 4 and len(living.engine.requests) > 0


@pytest.mark.parametrize(
    ("num_engines", "arguments", "message"),
    [(0, {}, "num_engines is 0"), (1, {"model_class": object()}, "as JSON")],
)
def test_bad_arguments_are_refused_before_ray_is_started(
    num_engines, arguments, message, monkeypatch
):
    monkeypatch.setattr(importlib, "import_module", raises(AssertionError("imported")))
    with pytest.raises(ConfigError, match=message):
        ray_engines("model", num_engines, **arguments)


def test_without_ray_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib, "import_module", raises(ImportError("no ray")))
    with pytest.raises(ConfigError, match="pip install ray"):
        ray_engines(os.curdir, 1)
