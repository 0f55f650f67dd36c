"""One system on one workflow in virtual time: the figures of a run."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from benchmarks.baselines.dataflow import Ask, run_dataflow
from benchmarks.baselines.orders import ORDERS, ordered, unordered
from benchmarks.baselines.parrot import ParrotDispatcher
from benchmarks.baselines.systems import System
from benchmarks.output_lengths import output_lengths
from benchmarks.policies.belady import belady_bound
from benchmarks.workflows import WORKFLOWS, Workload
from helium.cost import Profile, RooflineModel, TokenStepModel, operator_signatures
from helium.errors import ConfigError, EngineError
from helium.optimizer.driver import Switches, optimize
from helium.optimizer.rules.substitute_cached import DictPromptCache
from helium.plan.calls import Call
from helium.plan.compiled_plan import CompiledPlan
from helium.plan.interpret import interpret
from helium.planner import WorkflowPlan, plan_workflow
from helium.protocol import EnginePlan, WorkflowContext
from helium.runtime import EngineBackend, ModelAnswer, ModelCall, run_plan
from vllm_helium.simulator.engine_options import EngineOptions
from vllm_helium.simulator.fake_model import FakeModel
from vllm_helium.simulator.figures import CallRecord, EngineFigures, quantile
from vllm_helium.simulator.simulation import Simulation
from vllm_helium.simulator.tokenizer import PieceTokenizer

_SAMPLE_ROWS = 2
"""Rows whose output lengths the planner knows beforehand, as from a sample run."""


@dataclass(frozen=True)
class Setting:
    """What every system runs.

    Attributes:
        rows: Rows of the batch; ``None`` for the workflow's own number.
        is_distinct: Agents that are all different, instead of as published.
        scale: Factor on the lengths of texts.
        max_tokens: Limit of every answer.
        seed: Of the rows and the answers.
        num_blocks: KV blocks per engine; ``None`` for what the device holds.
        is_warm: Another day runs first; prompt caches keep its outputs, KV caches nothing.
        has_trace: Compute the offline bound on block hits.
    """

    workflow: str
    rows: int | None = None
    is_distinct: bool = False
    scale: float = 1.0
    max_tokens: int = 512
    seed: int = 0
    device: str = "H100-80GB"
    model: str = "Qwen3-8B"
    num_engines: int = 1
    num_blocks: int | None = None
    is_warm: bool = False
    has_trace: bool = False

    def title(self) -> str:
        """Returns one line for people."""
        parts = [self.workflow, f"{self.workload().num_rows} rows"]
        parts += ["all distinct"] if self.is_distinct else []
        parts += [self.model, f"{self.num_engines} x {self.device}"]
        parts += [f"{self.num_blocks} blocks"] if self.num_blocks else []
        parts += ["warm"] if self.is_warm else []
        return ", ".join(parts)

    def workload(self, day: int = 1) -> Workload:
        """Returns the workflow with its rows.

        Raises:
            ConfigError: Another day is asked of a workflow that knows none.
        """
        build = WORKFLOWS[self.workflow]
        arguments: dict[str, Any] = {
            "distinct": self.is_distinct,
            "seed": self.seed,
            "scale": self.scale,
            "max_tokens": self.max_tokens,
        }
        if self.rows is not None:
            arguments["size"] = self.rows
        if "day" in inspect.signature(build).parameters:
            arguments["day"] = day
        elif day != 1:
            raise ConfigError(f"{self.workflow}: has one day only; leave out --warm")
        return build(**arguments)


def run_system(setting: Setting, system: System) -> dict[str, Any]:
    """Runs a system on a fresh simulation; returns plain values.

    ``figures`` depends on the arguments alone; ``wall`` is what it took here.

    Raises:
        EngineError: A call failed.
        ConfigError: Setting and system do not fit each other.
    """
    cost = RooflineModel.preset(setting.device, setting.model)
    helium = False if system.helium is None else dict(system.helium) or True
    options = EngineOptions(
        num_blocks=setting.num_blocks, scheduler_cls=system.scheduler_cls, helium=helium
    )
    simulation = Simulation(
        cost,
        options,
        num_engines=setting.num_engines,
        lengths=output_lengths(setting.workflow),
        seed=setting.seed,
        has_traces=setting.has_trace,
    )
    runner = _Runner(system, simulation, setting)
    started = time.perf_counter()
    if setting.is_warm:
        runner.run(setting.workload(day=1))
        runner.forget_kv()
    before = simulation.figures()
    start_s = simulation.clock.now()
    num_calls = runner.run(setting.workload(day=2 if setting.is_warm else 1))
    figures = simulation.figures().since(before)
    makespan_s = simulation.clock.now() - start_s
    calls = [record for record in simulation.calls() if record.arrival_s >= start_s]
    assert num_calls == figures.num_calls == len(calls), "calls went missing"
    return {
        "system": asdict(system),
        "setting": asdict(setting),
        "assumptions": {"device": asdict(cost.device), "model": asdict(cost.shape)},
        "figures": _figures(figures, makespan_s, calls, simulation),
        "wall": {"run_s": time.perf_counter() - started, "planning_s": runner.planning_s},
    }


def _figures(
    figures: EngineFigures,
    makespan_s: float,
    calls: Sequence[CallRecord],
    simulation: Simulation,
) -> dict[str, Any]:
    latencies = [record.latency_s for record in calls]
    values = {
        "makespan_s": makespan_s,
        "num_blocks": simulation.engines[0].num_blocks,
        "latency_p50_s": quantile(latencies, 0.5),
        "latency_p95_s": quantile(latencies, 0.95),
        "utilization_ratio": figures.busy_s / (makespan_s * len(simulation.engines) or math.inf),
        **figures.to_dict(),
    }
    if simulation.traces:
        bounds = [belady_bound(t, e.num_blocks - 1) for t, e in simulation.traced_engines()]
        num_hits = sum(bound.num_hits for bound in bounds)
        block_size = simulation.traces[0].block_size
        values["offline_bound"] = {
            "num_lookups": sum(bound.num_lookups for bound in bounds),
            "num_hits": num_hits,
            "num_hits_unbounded": sum(bound.num_hits_unbounded for bound in bounds),
            "hit_ratio": num_hits * block_size / figures.num_prompt_tokens,
            "gap_ratio": 1 - figures.num_cached_tokens / (num_hits * block_size or math.inf),
        }
    return values


class _Runner:
    """Runs workloads as a system does; keeps the system's prompt cache between runs."""

    def __init__(self, system: System, simulation: Simulation, setting: Setting) -> None:
        self._system = system
        self._simulation = simulation
        self._setting = setting
        self._cache = DictPromptCache() if system.has_prompt_cache else None
        self.planning_s = 0.0

    def run(self, workload: Workload) -> int:
        """Runs a workload; returns its number of calls."""
        compiled = workload.compile()
        if self._system.order == "plan":
            return self._run_planned(compiled, self._profile(workload))
        if self._system.is_optimized:
            raise ConfigError(
                f"system {self._system.name!r}: is_optimized needs order 'plan', not "
                f"{self._system.order!r}; baselines run workflows as written"
            )
        ask = self._ask(compiled, workload)
        self._simulation.run(lambda: run_dataflow(compiled, ask))
        rows = compiled.rows
        return sum(rows.num_rows(operator.name) for operator in compiled.plan.llm_operators)

    def _run_planned(self, compiled: CompiledPlan, profile: Profile) -> int:
        started = time.perf_counter()
        if self._system.is_optimized:
            switches = Switches().without(*self._system.rules_off)
            compiled = optimize(compiled, switches, self._cache).compiled
        schedule = self._plan(compiled, profile)
        self.planning_s = time.perf_counter() - started
        backends = [
            _Backend(engine, self._cache, self._system.has_context)
            for engine in self._simulation.backends
        ]
        result = self._simulation.run(
            lambda: run_plan(compiled, backends, schedule=schedule, run="simulated")
        )
        if result.failures:
            failure = result.failures[0]
            raise EngineError(
                f"{self._system.name}: {len(result.failures)} rows failed; operator "
                f"{failure.operator!r}, row {failure.row}: {failure.reason}"
            )
        return result.total.num_calls

    def forget_kv(self) -> None:
        """Empties the engines' prefix caches."""
        for engine in self._simulation.engines:
            engine.reset_prefix_cache()
        for trace in self._simulation.traces:
            trace.clear()

    def _plan(
        self, compiled: CompiledPlan, profile: Profile, policy: str = "helium"
    ) -> WorkflowPlan:
        engine = self._simulation.engines[0]
        return plan_workflow(
            compiled,
            self._simulation.tokenizer,
            workflow=self._setting.workflow,
            profile=profile,
            model=TokenStepModel(engine.num_blocks * self._simulation.block_size),
            num_engines=self._setting.num_engines,
            policy=policy,
        )

    def _ask(self, compiled: CompiledPlan, workload: Workload) -> Ask:
        order, engines = self._system.order, self._simulation.backends
        if order == "parrot":
            return ParrotDispatcher(engines).ask
        if order in ORDERS:
            return ordered(order, compiled, engines)
        if order != "dataflow":
            known = ["plan", "dataflow", "parrot", *ORDERS]
            raise ConfigError(f"system {self._system.name!r}: unknown order {order!r}; {known=}")
        if not self._system.has_context:
            return unordered(compiled, engines)
        # A policy of the engine that knows the workflow: it gets the plan, not the schedule.
        schedule = self._plan(compiled, self._profile(workload), policy="op_wise")
        return with_context(schedule, engines)

    def _profile(self, workload: Workload) -> Profile:
        """Learns output lengths from the first rows, as a sample run would."""
        sample = {name: values[:_SAMPLE_ROWS] for name, values in workload.batch.items()}
        compiled = workload.graph.compile(**sample)
        lengths = output_lengths(self._setting.workflow)
        model = FakeModel(PieceTokenizer(), lengths, self._setting.seed)
        profile, signatures = Profile(), operator_signatures(compiled.plan)

        def answer(call: Call, operator: str, row: int) -> tuple[str, ...]:
            outputs = model.answer(call)
            for output in outputs:
                profile.observe_output(signatures[operator], len(output.token_ids))
            return tuple(output.text for output in outputs)

        interpret(compiled, answer)
        return profile


def with_context(schedule: WorkflowPlan, engines: Sequence[EngineBackend]) -> Ask:
    """Sends every call at once; engines are told the plan and each call's place, but no rank."""
    plans = schedule.engine_plans()
    digests = [plan.digest() for plan in plans]
    registered: set[int] = set()

    async def ask(operator: str, row: int, call: Call) -> ModelAnswer:
        number = schedule.place(operator, row).engine
        if number not in registered:
            registered.add(number)
            await engines[number].register(plans[number])
        context = WorkflowContext(digests[number], "simulated", operator, row=row)
        return await engines[number].call(ModelCall(call, context))

    return ask


class _Backend:
    """An engine whose answers go into a prompt cache, and which may be told no plan."""

    def __init__(
        self, engine: EngineBackend, cache: DictPromptCache | None, has_context: bool
    ) -> None:
        self._engine = engine
        self._cache = cache
        self._has_context = has_context

    async def register(self, plan: EnginePlan) -> None:
        if self._has_context:
            await self._engine.register(plan)

    async def call(self, request: ModelCall) -> ModelAnswer:
        if not self._has_context:
            request = msgspec.structs.replace(request, context=None)
        answer = await self._engine.call(request)
        if self._cache is not None and request.call.sampling.is_deterministic:
            self._cache.put(request.call, answer.texts)
        return answer
