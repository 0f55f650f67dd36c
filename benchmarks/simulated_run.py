"""One system on one workflow in virtual time: the figures of a run."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.baselines.system_runner import SystemRunner
from benchmarks.baselines.systems import System
from benchmarks.output_lengths import output_lengths
from benchmarks.policies.belady import belady_bound
from benchmarks.workflows import WORKFLOWS, Workload
from benchmarks.workflows.datasets import load_batch
from helium.cost import RooflineModel
from helium.errors import ConfigError
from vllm_helium.simulator.engine import SimulatedEngine
from vllm_helium.simulator.engine_options import EngineOptions
from vllm_helium.simulator.figures import CallRecord, EngineFigures, quantile
from vllm_helium.simulator.simulation import Simulation


@dataclass(frozen=True)
class Setting:
    """What every system runs.

    Attributes:
        rows: Rows of the batch; ``None`` for the workflow's own number.
        is_distinct: Agents that are all different, instead of as published.
        scale: Factor on the lengths of texts.
        max_tokens: Limit of every answer; ``None`` for the workflow's own.
        seed: Of the rows and the answers.
        num_blocks: KV blocks per engine; ``None`` for what the device holds.
        is_warm: Another day runs first; prompt caches keep its outputs, KV caches nothing.
        has_trace: Compute the offline bound on block hits.
        num_rounds: Of a workflow's debates; ``None`` for the workflow's own number.
        is_serial: A device whose arithmetic and memory traffic do not overlap.
        data: Folder of real data sets, instead of synthetic rows.
        link_bandwidth: To host memory, bytes/s each direction; ``None`` for the device's own.
    """

    workflow: str
    rows: int | None = None
    is_distinct: bool = False
    scale: float = 1.0
    max_tokens: int | None = None
    seed: int = 0
    device: str = "H100-80GB"
    model: str = "Qwen3-8B"
    num_engines: int = 1
    num_blocks: int | None = None
    is_warm: bool = False
    has_trace: bool = False
    num_rounds: int | None = None
    is_serial: bool = False
    data: str | None = None
    link_bandwidth: float | None = None

    def title(self) -> str:
        """Returns one line for people."""
        parts = [self.workflow, f"{self.num_rows} rows"]
        parts += ["all distinct"] if self.is_distinct else []
        parts += [f"{self.num_rounds} rounds"] if self.num_rounds else []
        parts += [self.model, f"{self.num_engines} x {self.device}"]
        parts += [f"{self.num_blocks} blocks"] if self.num_blocks else []
        parts += ["warm"] if self.is_warm else []
        parts += ["serial device"] if self.is_serial else []
        parts += ["real data"] if self.data else []
        parts += [f"seed {self.seed}"] if self.seed else []
        parts += [f"texts x {self.scale:g}"] if self.scale != 1 else []
        parts += [f"link {self.link_bandwidth / 1e9:g} GB/s"] if self.link_bandwidth else []
        return ", ".join(parts)

    @property
    def num_rows(self) -> int:
        """Rows of the batch."""
        if self.rows is not None:
            return self.rows
        return int(inspect.signature(WORKFLOWS[self.workflow]).parameters["size"].default)

    def workload(self, day: int = 1) -> Workload:
        """Returns the workflow with its rows.

        Raises:
            ConfigError: Another day, a number of rounds or real data is asked of a workflow that
                has none, or the data cannot be read.
        """
        build = WORKFLOWS[self.workflow]
        arguments: dict[str, Any] = {
            "distinct": self.is_distinct,
            "seed": self.seed,
            "scale": self.scale,
        }
        if self.max_tokens is not None:
            arguments["max_tokens"] = self.max_tokens
        if self.rows is not None:
            arguments["size"] = self.rows
        known = inspect.signature(build).parameters
        if self.num_rounds is not None:
            if "num_rounds" not in known:
                raise ConfigError(f"{self.workflow}: its rounds are fixed; leave out the number")
            arguments["num_rounds"] = self.num_rounds
        if "day" in known:
            arguments["day"] = day
        elif day != 1:
            raise ConfigError(f"{self.workflow}: has one day only; leave out --warm")
        workload = build(**arguments)
        if self.data is None:
            return workload
        return workload.with_batch(load_batch(self.workflow, Path(self.data), workload.num_rows))


def run_system(setting: Setting, system: System) -> dict[str, Any]:
    """Runs a system on a fresh simulation; returns plain values.

    ``figures`` depends on the arguments alone; ``wall`` is what it took here.

    Raises:
        EngineError: A call failed.
        ConfigError: Setting and system do not fit each other.
    """
    cost = replace(RooflineModel.preset(setting.device, setting.model), is_serial=setting.is_serial)
    if setting.link_bandwidth is not None:
        device = replace(cost.device, link_bandwidth=setting.link_bandwidth)
        cost = replace(cost, device=device)
    helium = False if system.helium is None else dict(system.helium) or True
    options = EngineOptions(
        num_blocks=setting.num_blocks,
        max_num_batched_tokens=system.max_num_batched_tokens,
        scheduler_cls=system.scheduler_cls,
        helium=helium,
        kv_connector=dict(system.kv_connector) if system.kv_connector else None,
    )
    simulation = Simulation(
        cost,
        options,
        num_engines=setting.num_engines,
        lengths=output_lengths(setting.workflow),
        seed=setting.seed,
        has_traces=setting.has_trace,
    )
    runner = SystemRunner(system, simulation, setting.seed)
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
        "figures": {
            **_figures(figures, makespan_s, calls, simulation),
            "num_plan_bytes": runner.num_plan_bytes,
            "host_link": _host_link(simulation),
        },
        "wall": {"run_s": time.perf_counter() - started, "planning_s": runner.planning_s},
    }


def _num_host_blocks(engine: SimulatedEngine) -> int:
    """Returns the slots of an engine's host tier; 0 where it has none."""
    describe = getattr(engine.scheduler.kv_cache_manager, "describe", dict)
    return sum(describe().get("host", {}).get("slots", {}).values())


def _host_link(simulation: Simulation) -> dict[str, Any]:
    """Returns what the engines moved to and from host memory, added up."""
    total: dict[str, Any] = {}
    for engine in simulation.engines:
        figures = engine.link.figures
        index = (
            engine.scheduler.kv_cache_manager.describe().get("host", {})
            if hasattr(engine.scheduler.kv_cache_manager, "describe")
            else {}
        )
        for name, value in (
            *asdict(figures).items(),
            *((name, value) for name, value in index.items() if name.startswith("num_prefetches")),
        ):
            total[name] = total.get(name, 0) + value
    return total


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
        if num_host_blocks := sum(_num_host_blocks(engine) for engine in simulation.engines):
            # A hit in either tier saves the same computing: one cache of both capacities.
            values["offline_bound"]["num_hits_two_tiers"] = sum(
                belady_bound(trace, engine.num_blocks - 1 + _num_host_blocks(engine)).num_hits
                for trace, engine in simulation.traced_engines()
            )
            values["num_host_blocks"] = num_host_blocks
    return values
