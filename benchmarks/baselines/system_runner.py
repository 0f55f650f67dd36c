"""Runs workloads on simulated engines as a system does."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from benchmarks.baselines.dataflow import Ask, run_dataflow
from benchmarks.baselines.orders import ORDERS, ordered, unordered
from benchmarks.baselines.parrot import ParrotDispatcher
from benchmarks.baselines.systems import System
from benchmarks.output_lengths import output_lengths
from benchmarks.workflows import Workload
from helium.cost import Profile, TokenStepModel, operator_signatures
from helium.errors import ConfigError, EngineError
from helium.optimizer.driver import Switches, optimize
from helium.optimizer.rules.substitute_cached import DictPromptCache
from helium.plan.calls import Call
from helium.plan.compiled_plan import CompiledPlan
from helium.plan.interpret import interpret
from helium.planner import WorkflowPlan, plan_workflow
from helium.protocol import EnginePlan, WorkflowContext
from helium.runtime import EngineBackend, ModelAnswer, ModelCall, run_plan
from vllm_helium.simulator.fake_model import FakeModel
from vllm_helium.simulator.simulation import Simulation
from vllm_helium.simulator.tokenizer import PieceTokenizer

_SAMPLE_ROWS = 2
"""Rows whose output lengths the planner knows beforehand, as from a sample run."""


class SystemRunner:
    """Keeps the system's prompt cache between runs.

    Attributes:
        planning_s: What optimizing and planning the last run took here, in seconds of this machine.
        num_plan_bytes: What the last run told the engines beforehand, as JSON.
    """

    def __init__(self, system: System, simulation: Simulation, seed: int) -> None:
        """Runs on the simulation's engines; ``seed`` is that of its answers."""
        self._system = system
        self._simulation = simulation
        self._seed = seed
        self._cache = DictPromptCache() if system.has_prompt_cache else None
        self.planning_s = 0.0
        self.num_plan_bytes = 0

    def run(self, workload: Workload) -> int:
        """Runs a workload; returns the number of calls made.

        Raises:
            EngineError: A call failed.
            ConfigError: The system contradicts itself.
        """
        compiled = workload.compile()
        if self._system.order == "plan":
            return self._run_planned(workload, compiled)
        if self._system.is_optimized:
            raise ConfigError(
                f"system {self._system.name!r}: is_optimized needs order 'plan', not "
                f"{self._system.order!r}; baselines run workflows as written"
            )
        ask = self._ask(workload, compiled)
        self._simulation.run(lambda: run_dataflow(compiled, ask))
        rows = compiled.rows
        return sum(rows.num_rows(operator.name) for operator in compiled.plan.llm_operators)

    def _run_planned(self, workload: Workload, compiled: CompiledPlan) -> int:
        profile = self._profile(workload)
        started = time.perf_counter()
        if self._system.is_optimized:
            switches = Switches().without(*self._system.rules_off)
            compiled = optimize(compiled, switches, self._cache).compiled
        schedule = self._plan(workload.name, compiled, profile)
        self.planning_s = time.perf_counter() - started
        if self._system.has_context:
            self.num_plan_bytes = sum(len(plan.to_json()) for plan in schedule.engine_plans())
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
        for engine in self._simulation.engines:
            num_unknown = getattr(engine.scheduler, "num_unplanned_contexts", 0)
            if num_unknown:
                raise EngineError(
                    f"{self._system.name}: {num_unknown} calls named a plan or an operator their "
                    "engine does not know; they ran as ordinary traffic, so this is no measurement"
                )
        return result.total.num_calls

    def forget_kv(self) -> None:
        """Empties the engines' prefix caches."""
        for engine in self._simulation.engines:
            engine.reset_prefix_cache()
        for trace in self._simulation.traces:
            trace.clear()

    def _plan(
        self, name: str, compiled: CompiledPlan, profile: Profile, policy: str = "helium"
    ) -> WorkflowPlan:
        engine = self._simulation.engines[0]
        return plan_workflow(
            compiled,
            self._simulation.tokenizer,
            workflow=name,
            profile=profile,
            model=TokenStepModel(engine.num_blocks * self._simulation.block_size),
            num_engines=len(self._simulation.engines),
            policy=policy,
        )

    def _ask(self, workload: Workload, compiled: CompiledPlan) -> Ask:
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
        # Another policy of the engine gets to know the workflow; ours gets a schedule as well.
        has_ranks = self._system.helium is not None
        policy = "helium" if has_ranks else "op_wise"
        schedule = self._plan(workload.name, compiled, self._profile(workload), policy)
        return with_context(schedule, engines, has_ranks)

    def _profile(self, workload: Workload) -> Profile:
        """Learns output lengths from the first rows, as a sample run would."""
        sample = {name: values[:_SAMPLE_ROWS] for name, values in workload.batch.items()}
        compiled = workload.graph.compile(**sample)
        model = FakeModel(PieceTokenizer(), output_lengths(workload.name), self._seed)
        profile, signatures = Profile(), operator_signatures(compiled.plan)

        def answer(call: Call, operator: str, row: int) -> tuple[str, ...]:
            outputs = model.answer(call)
            for output in outputs:
                profile.observe_output(signatures[operator], len(output.token_ids))
            return tuple(output.text for output in outputs)

        interpret(compiled, answer)
        return profile


def with_context(schedule: WorkflowPlan, engines: Sequence[EngineBackend], has_ranks: bool) -> Ask:
    """Sends every call at once to its engine, which is told the plan.

    Args:
        has_ranks: Whether calls carry their position in the schedule.
    """
    plans = schedule.engine_plans()
    digests = [plan.digest() for plan in plans]
    registered: set[int] = set()

    async def ask(operator: str, row: int, call: Call) -> ModelAnswer:
        number, position = schedule.place(operator, row)
        rank = position if has_ranks else None
        if number not in registered:
            registered.add(number)
            await engines[number].register(plans[number])
        context = WorkflowContext(digests[number], "simulated", operator, row=row, rank=rank)
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
