"""The systems, each run over one server: days in, seconds and calls out."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.baselines.dataflow import run_dataflow
from benchmarks.baselines.orders import ordered, unordered
from benchmarks.real_systems.environments import ensure
from benchmarks.real_systems.floor import Messages, least_prefill_tokens
from benchmarks.real_systems.jobs import job_of, prompt_digest
from benchmarks.real_systems.servers import MODEL, Server, Tokens
from benchmarks.workflows import Workload
from helium.errors import EngineError
from helium.protocol import EnginePlan
from helium.runtime import ModelAnswer, ModelCall, PromptCache, Runtime
from helium.runtime.http_backend import HttpBackend
from helium.templates.tokenizer import PromptTokenizer, TransformersTokenizer

FRAMEWORKS = ("langgraph", "agentscope")
ORDERS = ("query_wise", "op_wise", "random", "dataflow")
SYSTEMS = (*FRAMEWORKS, *ORDERS, "helium")

_CLIENT = Path(__file__).with_name("framework_client.py")
_TIMEOUT_S = 3_600


class Day(NamedTuple):
    """One run of the workflow.

    Attributes:
        server_cpu_s: Processor time of the server.
        answers: Digest of a call's prompt -> text of the answer.
        num_calls: Calls made; equal prompts count each time.
        tokens: What the server counted.
        least_prefill_tokens: Prompt tokens of these calls were every common one computed once;
            ``None`` where that was not looked at.
    """

    elapsed_s: float
    server_cpu_s: float
    answers: dict[str, str]
    num_calls: int
    tokens: Tokens = Tokens()
    least_prefill_tokens: int | None = None


def run(name: str, server: Server, days: Sequence[Workload], model: Path) -> list[Day]:
    """Runs days one after the other, each on a server whose prefix cache is empty.

    Only ours keeps anything from one day to the next, its prompt cache: of all other systems just
    the last day is run.

    Args:
        model: Folder of the model, for its tokenizer.

    Raises:
        EngineError: Calls failed.
    """
    if name in FRAMEWORKS:
        return [_run_framework(name, server, days[-1])]
    if name == "helium":
        return asyncio.run(_run_helium(server, days, model))
    return asyncio.run(_run_order(name, server, days[-1:]))


def _run_framework(name: str, server: Server, day: Workload) -> Day:
    job = {"framework": name, "api": server.api, "model": MODEL, "workflow": job_of(day)}
    with tempfile.TemporaryDirectory() as folder:
        job_path, result_path = Path(folder, "job.json"), Path(folder, "result.json")
        job_path.write_text(json.dumps(job))
        server.reset_prefix_cache()
        cpu_s, tokens = server.cpu_s(), server.tokens()
        done = subprocess.run(
            [str(ensure("frameworks")), str(_CLIENT), str(job_path), str(result_path)],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
        if done.returncode:
            raise EngineError(f"{name} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        result = json.loads(result_path.read_text())
    calls = result["calls"]
    answers = {digest: text for _, _, digest, text in calls}
    used_s = server.cpu_s() - cpu_s
    return Day(result["elapsed_s"], used_s, answers, len(calls), server.tokens().since(tokens))


class _Recorder:
    """An engine that remembers what it was asked."""

    def __init__(self, engine: HttpBackend) -> None:
        self._engine = engine
        self.forget()

    def forget(self) -> None:
        self.answers: dict[str, str] = {}
        self.conversations: list[tuple[Messages, str]] = []
        self.num_calls = 0

    async def register(self, plan: EnginePlan) -> None:
        await self._engine.register(plan)

    async def call(self, request: ModelCall) -> ModelAnswer:
        answer = await self._engine.call(request)
        self.answers[prompt_digest(request.call.messages)] = answer.texts[0]
        self.conversations.append((request.call.messages, answer.texts[0]))
        self.num_calls += 1
        return answer


async def _run_days(
    server: Server,
    days: Sequence[Workload],
    run_one: Callable[[_Recorder, Workload], Coroutine[Any, Any, None]],
    tokenizer: PromptTokenizer | None = None,
) -> list[Day]:
    backend = HttpBackend(server.api, model=MODEL)
    recorder = _Recorder(backend)
    found = []
    try:
        for day in days:
            recorder.forget()
            server.reset_prefix_cache()
            tokens, cpu_s = server.tokens(), server.cpu_s()
            started = time.perf_counter()
            await run_one(recorder, day)
            elapsed_s, used_s = time.perf_counter() - started, server.cpu_s() - cpu_s
            tokens = server.tokens().since(tokens)
            measured = Day(elapsed_s, used_s, recorder.answers, recorder.num_calls, tokens)
            if tokenizer is not None:
                least = least_prefill_tokens(recorder.conversations, tokenizer)
                measured = measured._replace(least_prefill_tokens=least)
            found.append(measured)
    finally:
        await backend.close()
    return found


async def _run_order(name: str, server: Server, days: Sequence[Workload]) -> list[Day]:
    async def run_one(recorder: _Recorder, day: Workload) -> None:
        compiled = day.compile()
        if name in ("random", "dataflow"):
            engine = _Shuffled(recorder) if name == "random" else recorder
            ask = unordered(compiled, [engine])
        else:
            ask = ordered(name, compiled, [recorder])
        await run_dataflow(compiled, ask)

    return await _run_days(server, days, run_one)


class _Shuffled:
    """Sends the calls that are ready at one moment in random order."""

    def __init__(self, engine: _Recorder, seed: int = 0) -> None:
        self._engine = engine
        self._random = random.Random(seed)
        self._ready: list[asyncio.Future[None]] = []

    async def register(self, plan: EnginePlan) -> None:
        await self._engine.register(plan)

    async def call(self, request: ModelCall) -> ModelAnswer:
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        if not self._ready:
            loop.call_later(0.002, self._release)
        self._ready.append(turn)
        await turn
        return await self._engine.call(request)

    def _release(self) -> None:
        ready, self._ready = self._ready, []
        self._random.shuffle(ready)
        for turn in ready:
            if not turn.done():
                turn.set_result(None)


async def _run_helium(server: Server, days: Sequence[Workload], model: Path) -> list[Day]:
    from transformers import AutoTokenizer

    tokenizer = TransformersTokenizer(AutoTokenizer.from_pretrained(model))
    with tempfile.TemporaryDirectory() as folder:
        cache = PromptCache(Path(folder, "prompts.sqlite"))
        runtimes: dict[int, Runtime] = {}

        async def run_one(recorder: _Recorder, day: Workload) -> None:
            if not runtimes:  # one for all days: its prompt cache is what the first leaves behind
                runtimes[0] = Runtime(recorder, tokenizer, revision="benchmark", prompt_cache=cache)
            result = await runtimes[0].run(day.graph, day.batch, name=day.name)
            if result.failures:
                failure = result.failures[0]
                raise EngineError(
                    f"helium: {len(result.failures)} rows failed; operator {failure.operator!r}, "
                    f"row {failure.row}: {failure.reason}"
                )

        try:
            return await _run_days(server, days, run_one, tokenizer)
        finally:
            for runtime in runtimes.values():
                await runtime.close()
            cache.close()
