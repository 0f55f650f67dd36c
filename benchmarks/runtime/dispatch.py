"""What the runtime costs per call: engines that answer at once, against a bare ``asyncio.gather``.

Usage: python -m benchmarks.runtime.dispatch [--calls 96000] [--repeats 3] [--output FILE]

Every prompt is different, so nothing is shared. ``planned`` runs with a schedule, and so with ranks
and contexts; ``chain`` makes the same number of calls as two-step rows; ``prompt_cache`` looks
every call up, finds nothing and stores every answer; ``checkpoint`` is a ``Runtime`` that plans,
and writes every answer to a store of runs. The baseline makes the same calls of the same engine
without any of that, twice: the difference of the two is the noise floor. Beside the wall time
stands the CPU time of the process, which tells more on a shared machine.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.results_file import environment, write_results
from helium import graphs, ops
from helium.dsl.graph import Graph
from helium.plan.calls import Call
from helium.plan.compiled_plan import CompiledPlan
from helium.plan.operators import Sampling
from helium.planner import plan_workflow
from helium.planner.workflow_plan import WorkflowPlan
from helium.protocol import EnginePlan
from helium.runtime import ModelAnswer, ModelCall, RunStore, Runtime
from helium.runtime.cache_lookup import CacheLookup
from helium.runtime.dispatcher import Dispatcher
from helium.runtime.execution import Execution
from helium.runtime.function_threads import FunctionThreads
from helium.runtime.prompt_cache import PromptCache
from helium.templates.tokenizer import WordTokenizer


class InstantEngine:
    """Answers without waiting, or after ``num_pauses`` turns of the event loop."""

    def __init__(self, num_pauses: int) -> None:
        self._num_pauses = num_pauses

    async def register(self, plan: EnginePlan) -> None:
        """Takes any plan."""

    async def call(self, request: ModelCall) -> ModelAnswer:
        for _ in range(self._num_pauses):
            await asyncio.sleep(0)
        return ModelAnswer(("ok",), 10, 4, 2)


def rows(num_calls: int) -> list[str]:
    return [f"question {number}" for number in range(num_calls)]


def one_step_graph() -> Graph:
    question = ops.placeholder("question")
    answer = ops.llm([ops.Msg("system", "Be brief."), ops.Msg("user", question)], name="answer")
    return graphs.build({"answer": answer})


def one_step(num_calls: int) -> CompiledPlan:
    return one_step_graph().compile(question=rows(num_calls))


def two_steps(num_calls: int) -> CompiledPlan:
    question = ops.placeholder("question")
    draft = ops.llm([ops.Msg("user", ["Draft: ", question])], name="draft")
    # The row's question keeps prompts apart: every answer is the same.
    final = ops.llm([ops.Msg("user", ["Of ", question, " keep: ", draft])], name="final")
    return graphs.build({"final": final}).compile(question=rows(num_calls // 2))


async def gather(num_calls: int, engine: InstantEngine) -> None:
    calls = (
        Call((("system", "Be brief."), ("user", row)), None, Sampling(), None)
        for row in rows(num_calls)
    )
    await asyncio.gather(*(engine.call(ModelCall(call)) for call in calls))


async def execute(
    compiled: CompiledPlan,
    engine: InstantEngine,
    schedule: WorkflowPlan | None = None,
    cache: CacheLookup | None = None,
) -> None:
    dispatcher = Dispatcher(engine, cache=cache)
    threads = FunctionThreads()
    result = await Execution(compiled, dispatcher, threads, "run", schedule).execute()
    await dispatcher.close()
    await threads.close()
    if result.failures:
        raise SystemExit(f"failed: {result.failures[:3]}")


async def idle(seconds: float) -> float:
    """Returns the CPU seconds a run spends that waits for one slow call."""

    class Slow(InstantEngine):
        async def call(self, request: ModelCall) -> ModelAnswer:
            await asyncio.sleep(seconds)
            return ModelAnswer(("ok",))

    before = time.process_time()
    await execute(one_step(1), Slow(0))
    return time.process_time() - before


def measure(work: Callable[[], Awaitable[None]], repeats: int) -> list[tuple[float, float]]:
    """Returns (wall, CPU) seconds of each repeat, shortest first."""
    times = []
    for _ in range(repeats):
        start, cpu = time.perf_counter(), time.process_time()
        asyncio.run(work())  # type: ignore[arg-type]
        times.append((time.perf_counter() - start, time.process_time() - cpu))
    return sorted(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=96_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    num_calls = arguments.calls
    plain, chain = one_step(num_calls), two_steps(num_calls)
    schedule = plan_workflow(plain, WordTokenizer())
    folder = tempfile.TemporaryDirectory()
    numbers = iter(range(1 << 30))

    async def cached(engine: InstantEngine) -> None:
        cache = PromptCache(Path(folder.name) / f"{next(numbers)}.db")
        await execute(plain, engine, cache=CacheLookup(cache, "benchmark"))
        cache.close()

    async def checkpointed(engine: InstantEngine) -> None:
        store = RunStore(Path(folder.name) / f"{next(numbers)}.db")
        async with Runtime(engine, WordTokenizer(), store=store) as runtime:
            result = await runtime.run(one_step_graph(), {"question": rows(num_calls)})
        store.close()
        if result.failures:
            raise SystemExit(f"failed: {result.failures[:3]}")

    measured: dict[str, list[tuple[float, float]]] = {}
    for num_pauses in (0, 1):
        engine = InstantEngine(num_pauses)
        cases: dict[str, Callable[[], Awaitable[None]]] = {
            "gather": lambda engine=engine: gather(num_calls, engine),
            "gather again": lambda engine=engine: gather(num_calls, engine),
            "plain": lambda engine=engine: execute(plain, engine),
            "planned": lambda engine=engine: execute(plain, engine, schedule),
            "chain": lambda engine=engine: execute(chain, engine),
            "prompt_cache": lambda engine=engine: cached(engine),
            "checkpoint": lambda engine=engine: checkpointed(engine),
        }
        for name, work in cases.items():
            key = f"{name}, {num_pauses} pauses"
            measured[key] = measure(work, arguments.repeats)
            wall, cpu = measured[key][arguments.repeats // 2]
            print(f"{key:28}{wall:8.2f} s{cpu:8.2f} CPU s{cpu / num_calls * 1e6:8.1f} us/call")
    folder.cleanup()
    idle_s, cpu_s = 5.0, asyncio.run(idle(5.0))
    print(f"idle: {cpu_s:.4f} CPU s in {idle_s:.0f} s ({cpu_s / idle_s:.3%})")
    if arguments.output:
        report = {
            "calls": num_calls,
            "wall_and_cpu_s": measured,
            "idle_cpu_ratio": cpu_s / idle_s,
            "max_rss_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            "environment": environment(),
        }
        write_results(arguments.output, report)


if __name__ == "__main__":
    main()
