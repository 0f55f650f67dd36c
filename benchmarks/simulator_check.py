"""Checks the simulator against the engine it simulates: same workload, same KV cache, same counts.

    python -m benchmarks.simulator_check [--workflow NAME] [--output FILE]

A tiny model runs on the CPU engine, stepped by hand: whatever the program can do is done before the
next step, as in the simulator. The simulator then answers every call with the tokens the model
gave.
Tokens computed by prefill and by decoding, cached tokens, evictions and steps must be the same; the
systems' order by virtual time is printed beside their order by wall time.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind

from benchmarks.baselines.system_runner import SystemRunner
from benchmarks.baselines.systems import System, system
from benchmarks.results_file import environment, write_results
from benchmarks.workflows import WORKFLOWS, Workload
from helium.cost import DEVICES, ModelShape, RooflineModel
from helium.protocol import EnginePlan
from helium.runtime import ModelAnswer, ModelCall
from helium.templates.tokenizer import TransformersTokenizer
from vllm_helium.models.tiny import make_tiny_llama
from vllm_helium.request import write_context
from vllm_helium.simulator.engine import SimulatedEngine
from vllm_helium.simulator.engine_options import EngineOptions
from vllm_helium.simulator.evictions import count_evictions
from vllm_helium.simulator.virtual_time import VirtualClock, run

SYSTEMS = ("op_wise", "langgraph", "lspf", "helium")
WORKLOADS: dict[str, dict[str, Any]] = {
    "mapreduce-mmlu": {"size": 6, "scale": 0.25, "max_tokens": 16},
    "debate-tatqa": {"size": 2, "scale": 0.1, "max_tokens": 16},
    "trading-4b": {"size": 2, "scale": 0.01, "max_tokens": 16},
}
LIMITS = {
    "block_size": 32,
    "max_num_seqs": 16,
    "max_num_batched_tokens": 512,
    "max_model_len": 4_096,
}
NUM_BLOCKS = {"mapreduce-mmlu": 150, "debate-tatqa": 300, "trading-4b": 300}
"""Less than what each workload leaves behind, so that blocks are evicted."""

TINY = ModelShape("tiny", 2e5, 0, 2, 2, 2, 32, bytes_per_value=4)
COST = RooflineModel(replace(DEVICES["cpu"], step_overhead_ms=2.0), TINY)

Answers = dict[tuple[int, ...], tuple[str, list[int]]]
"""Prompt -> the answer's text and tokens."""

Finished = Callable[[str, list[int], int], None]


class Counts(NamedTuple):
    """What one run did; ``elapsed_s`` is wall time or virtual time and not compared."""

    num_calls: int
    num_steps: int
    num_scheduled_tokens: int
    num_cached_tokens: int
    num_evictions: int
    num_preemptions: int
    elapsed_s: float

    def comparable(self) -> tuple[int, ...]:
        """Returns what must be the same."""
        return self[:-1]


class _Engine(ABC):
    """What both engines have in common: a scheduler that is watched, calls that are counted."""

    def __init__(self, scheduler: Any, num_blocks: int) -> None:
        self.scheduler, self.num_blocks = scheduler, num_blocks
        self.num_calls = self.num_cached_tokens = self.num_steps = 0
        self.num_scheduled_tokens = self.num_preemptions = 0
        self.num_evictions = count_evictions(scheduler)
        schedule = scheduler.schedule

        def watched(*args: Any, **kwargs: Any) -> Any:
            scheduled = schedule(*args, **kwargs)
            if scheduled.total_num_scheduled_tokens:
                self.num_steps += 1
                self.num_scheduled_tokens += scheduled.total_num_scheduled_tokens
            self.num_preemptions += len(scheduled.preempted_req_ids or ())
            return scheduled

        scheduler.schedule = watched

    def counts(self, elapsed_s: float) -> Counts:
        return Counts(
            self.num_calls,
            self.num_steps,
            self.num_scheduled_tokens,
            self.num_cached_tokens,
            self.num_evictions(),
            self.num_preemptions,
            elapsed_s,
        )

    @abstractmethod
    def add(self, name: str, prompt: list[int], params: SamplingParams, done: Finished) -> None:
        """Makes a call and tells ``done`` its text, its tokens and how many were cached."""


class _RealEngine(_Engine):
    """The CPU engine, in this process, as a world that steps when the program waits."""

    def __init__(self, llm: LLM, num_blocks: int, clock: VirtualClock, answers: Answers) -> None:
        self._engine = llm.llm_engine
        scheduler = self._engine.engine_core.engine_core.scheduler
        super().__init__(scheduler, num_blocks)
        self._clock, self._answers = clock, answers
        self._waiting: dict[str, tuple[list[int], Finished]] = {}

    def add(self, name: str, prompt: list[int], params: SamplingParams, done: Finished) -> None:
        self._waiting[name] = (prompt, done)
        self._engine.add_request(name, {"prompt_token_ids": prompt}, params)

    def prepare(self) -> None:
        """Nothing: a step is scheduled and run at once."""

    def next_event_s(self) -> float | None:
        return self._clock.now() if self._engine.has_unfinished_requests() else None

    def happen(self) -> None:
        started = time.perf_counter()
        outputs = self._engine.step()
        self._clock.advance_to(self._clock.now() + time.perf_counter() - started)
        for output in outputs:
            if output.finished:
                prompt, done = self._waiting.pop(output.request_id)
                text, tokens = output.outputs[0].text, list(output.outputs[0].token_ids)
                self._answers[tuple(prompt)] = (text, tokens)
                self.num_calls += 1
                self.num_cached_tokens += output.num_cached_tokens or 0
                done(text, tokens, output.num_cached_tokens or 0)


class _SimulatedEngine(_Engine):
    """The simulator's, with the answers of the real one."""

    def __init__(
        self,
        simulated: SimulatedEngine,
        answers: Answers,
    ) -> None:
        super().__init__(simulated.scheduler, simulated.num_blocks)
        self._simulated, self._answers = simulated, answers
        self.prepare, self.happen = simulated.prepare, simulated.happen
        self.next_event_s = simulated.next_event_s

    def add(self, name: str, prompt: list[int], params: SamplingParams, done: Finished) -> None:
        text, tokens = self._answers[tuple(prompt)]

        def finished(record: Any) -> None:
            self.num_calls += 1
            self.num_cached_tokens += record.num_cached_tokens
            done(text, tokens, record.num_cached_tokens)

        self._simulated.add(name, prompt, tokens, params, finished)


class _Backend:
    """Renders prompts with the model's tokenizer and awaits answers."""

    def __init__(self, engine: _Engine, tokenizer: Any) -> None:
        self._engine, self._tokenizer = engine, tokenizer
        self._ids = (f"call-{number:05d}" for number in itertools.count())
        self._knows_plans = hasattr(engine.scheduler, "helium_rpc")

    async def register(self, plan: EnginePlan) -> None:
        if self._knows_plans:
            self._engine.scheduler.helium_rpc("register_plan", plan.to_json())

    async def call(self, request: ModelCall) -> ModelAnswer:
        sampling = request.call.sampling
        messages = [{"role": role, "content": text} for role, text in request.call.messages]
        text = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        prompt = self._tokenizer.encode(text, add_special_tokens=False)
        extra: dict[str, Any] = {}
        if self._knows_plans:
            write_context(extra, request.context)
        params = SamplingParams(
            temperature=0.0,
            max_tokens=sampling.max_tokens,
            ignore_eos=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=extra or None,
        )
        future: asyncio.Future[ModelAnswer] = asyncio.get_running_loop().create_future()

        def done(text: str, tokens: list[int], num_cached: int) -> None:
            future.set_result(ModelAnswer((text,), len(prompt), num_cached, len(tokens)))

        self._engine.add(next(self._ids), prompt, params, done)
        return await future


class _World:
    """The parts of a ``Simulation`` that a ``SystemRunner`` uses, around one engine."""

    def __init__(self, engine: _Engine, clock: VirtualClock, tokenizer: Any) -> None:
        self.engines, self.clock = [engine], clock
        self.backends = [_Backend(engine, tokenizer)]
        self.tokenizer = TransformersTokenizer(tokenizer)
        self.block_size = LIMITS["block_size"]
        self.traces: list[Any] = []

    def run(self, program: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        return run(program, self.clock, self.engines[0])  # type: ignore[arg-type]


def check(model: Path, workload: Workload, chosen: System) -> tuple[Counts, Counts]:
    """Runs a system on both engines; returns the real engine's counts, then the simulator's."""
    answers: Answers = {}
    num_blocks = NUM_BLOCKS[workload.name]
    helium: Any = False if chosen.helium is None else dict(chosen.helium) or True
    llm = LLM(
        str(model),
        dtype="float32",
        enforce_eager=True,
        kv_cache_memory_bytes=64 << 20,
        num_gpu_blocks_override=num_blocks,
        scheduler_cls=chosen.scheduler_cls,
        helium=helium,
        **LIMITS,
    )
    try:
        tokenizer = llm.get_tokenizer()
        clock = VirtualClock()
        real = _RealEngine(llm, num_blocks, clock, answers)
        SystemRunner(chosen, _World(real, clock, tokenizer), 0).run(workload)  # type: ignore[arg-type]
        measured = real.counts(clock.now())
    finally:
        llm.llm_engine.engine_core.shutdown()
    clock = VirtualClock()
    options = EngineOptions(
        num_blocks=num_blocks,
        async_scheduling=False,
        scheduler_cls=chosen.scheduler_cls,
        helium=helium,
        **LIMITS,
    )
    simulated = _SimulatedEngine(SimulatedEngine(options, COST, clock), answers)
    SystemRunner(chosen, _World(simulated, clock, tokenizer), 0).run(workload)  # type: ignore[arg-type]
    return measured, simulated.counts(clock.now())


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the counts; returns 1 where they differ."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulator_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workflow", action="append", choices=list(WORKLOADS))
    parser.add_argument("--system", action="append")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = make_tiny_llama(Path(folder, "tiny"))
        for name in options.workflow or WORKLOADS:
            workload = WORKFLOWS[name](**WORKLOADS[name])
            for one in options.system or SYSTEMS:
                measured, simulated = check(model, workload, system(one))
                is_equal = measured.comparable() == simulated.comparable()
                rows.append(
                    {
                        "workflow": name,
                        "system": one,
                        "is_equal": is_equal,
                        "engine": measured._asdict(),
                        "simulator": simulated._asdict(),
                    }
                )
                print(f"{name:16} {one:10} {'equal' if is_equal else 'DIFFERENT'}")
                print(f"  engine    {measured}\n  simulator {simulated}", flush=True)
    for name in dict.fromkeys(row["workflow"] for row in rows):
        for kind in ("engine", "simulator"):
            mine = [row for row in rows if row["workflow"] == name]
            mine.sort(key=lambda row: row[kind]["elapsed_s"])
            print(f"{name}: by time of the {kind}: {[row['system'] for row in mine]}")
    if options.output is not None:
        write_results(options.output, {"environment": environment(), "results": rows})
    return 0 if all(row["is_equal"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
