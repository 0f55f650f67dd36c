"""Ray actors as engines of a ``helium.runtime.Runtime``: each is a whole engine with its own TRT.

Which call goes where is the planner's affair and the dispatcher's; Ray places processes and tells
when one has died. Ray is optional: ``pip install vllm[ray]``.
"""

from __future__ import annotations

import asyncio
import importlib
import math
import os
from collections.abc import Callable
from typing import Any

import msgspec

from helium.errors import ConfigError, EngineError
from helium.protocol import EnginePlan
from helium.runtime.backend import EngineGone, EngineUnavailable, ModelAnswer, ModelCall
from helium.runtime.dispatcher import MAX_OPEN_CALLS
from vllm_helium.ray_actor import EngineActor, Reply

_OBJECT_STORE_BYTES = 80_000_000
"""About the least Ray takes (75 MiB): calls and answers are small and rarely touch it."""
_NUM_CONTROL_CALLS = 64
"""Plans and questions an actor takes beside a full set of calls."""

_decode_reply = msgspec.json.Decoder(Reply).decode


class RayBackend:
    """One engine in an actor."""

    def __init__(
        self,
        actor: Any,
        *,
        name: str = "engine",
        pid: int | None = None,
        cancel: Callable[[Any], object] = lambda _: None,
        kill: Callable[[Any], object] = lambda _: None,
    ) -> None:
        """Starts nothing.

        Args:
            actor: Handle of an ``EngineActor``.
            name: Of the engine, in messages.
            pid: Process the engine was started in; a restarted one has another.
            cancel: Cancels the task behind a reference.
            kill: Ends an actor for good.
        """
        self.pid = pid
        self._actor = actor
        self._name = name
        self._cancel = cancel
        self._kill = kill

    async def register(self, plan: EnginePlan) -> None:
        """Tells the engine about a run.

        Raises:
            EngineUnavailable: The actor is being restarted.
            EngineGone: The actor has died.
            EngineError: The engine refused the plan.
        """
        await self._ask("register", plan.to_json())

    async def call(self, request: ModelCall) -> ModelAnswer:
        """Answers one call; cancelling it aborts the request in the actor.

        Raises:
            EngineUnavailable: The actor is being restarted.
            EngineGone: The actor has died.
            EngineError: The engine refused or aborted the call.
        """
        reply = await self._ask("call", msgspec.json.encode(request))
        if reply.answer is None:
            raise EngineError(f"{self._name}: the actor's reply has neither answer nor error")
        return reply.answer

    async def close(self) -> None:
        """Ends the actor; calls under way fail."""
        self._kill(self._actor)

    async def _ask(self, method: str, encoded: bytes) -> Reply:
        reference = None
        try:
            reference = getattr(self._actor, method).remote(encoded)
            reply = _decode_reply(await reference)
        except asyncio.CancelledError:
            if reference is not None:
                self._cancel(reference)
            raise
        except Exception as error:
            raise self._engine_error(error) from error
        if reply.error is not None:
            raise (EngineUnavailable if reply.is_unavailable else EngineError)(reply.error)
        return reply

    def _engine_error(self, error: Exception) -> EngineError:
        """Returns what an exception of Ray's says about the engine.

        Ray's classes are told by name, which works where Ray is not installed too.
        """
        kinds = {kind.__name__ for kind in type(error).__mro__}
        # Ray's texts go on for lines with ids of the actor, its node and its job.
        said = str(error).strip().partition("\n")[0]
        message = f"{self._name}: {type(error).__name__}: {said}"
        if "ActorUnavailableError" in kinds:
            return EngineUnavailable(message)
        if "RayActorError" in kinds:
            return EngineGone(message)
        return EngineError(message)


def ray_engines(
    model: str | os.PathLike[str],
    num_engines: int,
    *,
    num_cpus: float = 1,
    num_gpus: float = 0,
    max_restarts: int = 0,
    start_timeout_s: float = 600.0,
    **llm_args: Any,
) -> list[RayBackend]:
    """Starts identical engines, each in an actor; returns when all of them serve.

    Blocks for as long as an engine takes to start. Where Ray is not initialized it uses the cluster
    of ``RAY_ADDRESS``, or starts a local one of just this size that ends with this process.

    Args:
        num_cpus: Cores of one engine; also its OpenMP threads.
        num_gpus: GPUs of one engine. Ray hides all of them from an actor that asks for none.
        max_restarts: How often Ray starts a dead engine anew, -1 for always. With 0 a dead engine
            is gone, and the dispatcher gives its calls to the others at once.
        start_timeout_s: Seconds in which all engines must have started.
        **llm_args: Arguments of ``LLM`` that JSON can hold; ``helium`` is on unless given.

    Returns:
        Backends for ``Runtime``; ``close`` each of them.

    Raises:
        ConfigError: An argument cannot be used, or Ray is not installed.
        EngineError: An engine did not start; none is left running then.
    """
    if num_engines < 1:
        raise ConfigError(f"ray_engines: num_engines is {num_engines}; give at least 1")
    try:
        encoded_args = msgspec.json.encode({"helium": True} | llm_args)
    except TypeError as error:
        raise ConfigError(
            f"ray_engines: the arguments of LLM go to the actors as JSON: {error}"
        ) from None
    ray = _ray(math.ceil(num_engines * num_cpus), math.ceil(num_engines * num_gpus))
    remote_class = ray.remote(
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        max_restarts=max_restarts,
        max_concurrency=MAX_OPEN_CALLS + _NUM_CONTROL_CALLS,
        runtime_env={"env_vars": _environment(num_cpus)},
    )(EngineActor)
    actors = [remote_class.remote(os.fspath(model), encoded_args) for _ in range(num_engines)]
    try:
        pids = ray.get([actor.pid.remote() for actor in actors], timeout=start_timeout_s)
    except BaseException as error:
        for actor in actors:
            ray.kill(actor)
        if isinstance(error, ray.exceptions.GetTimeoutError):
            raise EngineError(
                f"ray_engines: {num_engines} engine(s) of {num_cpus} CPU(s) and {num_gpus} GPU(s) "
                f"did not start within {start_timeout_s} s; Ray has {ray.cluster_resources()}"
            ) from None
        if isinstance(error, ray.exceptions.RayError):
            raise EngineError(f"ray_engines: an engine did not start: {error}") from None
        raise
    return [
        RayBackend(actor, name=f"Ray engine {index}", pid=pid, cancel=ray.cancel, kill=ray.kill)
        for index, (actor, pid) in enumerate(zip(actors, pids, strict=True))
    ]


def _environment(num_cpus: float) -> dict[str, str]:
    """Returns the variables of an actor, which is all of its engine and keeps to its cores."""
    return {
        "OMP_NUM_THREADS": str(max(1, int(num_cpus))),
        # Left to itself every engine of a machine may bind its threads to the same cores.
        "VLLM_CPU_OMP_THREADS_BIND": os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }


def _ray(num_cpus: int, num_gpus: int) -> Any:
    """Returns Ray, initialized.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise ConfigError("ray_engines: Ray is not installed; pip install ray") from None
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if "RAY_ADDRESS" in os.environ:
            ray.init()
        else:
            # Ray gives way to everything else on a machine, which no engine should.
            os.environ.setdefault("RAY_worker_niceness", "0")
            ray.init(
                address="local",
                num_cpus=num_cpus,
                num_gpus=num_gpus or None,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
            )
    return ray
