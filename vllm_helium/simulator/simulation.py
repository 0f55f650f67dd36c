"""Engines, a clock and a program: what a simulation is made of."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from helium.cost import RooflineModel
from vllm_helium.simulator.access_trace import AccessTrace
from vllm_helium.simulator.backend import SimulatorBackend
from vllm_helium.simulator.engine import SimulatedEngine
from vllm_helium.simulator.engine_options import EngineOptions
from vllm_helium.simulator.fake_model import FakeModel, OutputLengths
from vllm_helium.simulator.figures import CallRecord, EngineFigures
from vllm_helium.simulator.tokenizer import PieceTokenizer
from vllm_helium.simulator.virtual_time import VirtualClock, run

_T = TypeVar("_T")


class Simulation:
    """Identical engines on one clock.

    >>> simulation = Simulation(RooflineModel.preset("H100-80GB", "Qwen3-8B"))  # doctest: +SKIP
    >>> result = simulation.run(lambda: run_plan(compiled, simulation.backends))  # doctest: +SKIP
    >>> simulation.clock.now(), simulation.figures()  # doctest: +SKIP

    Args:
        lengths: How long answers are.
        seed: Of the answers' words and lengths.
        has_traces: Records every cache access, in ``traces``, one per engine.

    Raises:
        ConfigError: The options do not fit the device or each other.
    """

    def __init__(
        self,
        cost: RooflineModel,
        options: EngineOptions | None = None,
        *,
        num_engines: int = 1,
        lengths: OutputLengths | None = None,
        seed: int = 0,
        has_traces: bool = False,
    ) -> None:
        options = options or EngineOptions()
        self.block_size = options.block_size
        self.clock = VirtualClock()
        self.tokenizer = PieceTokenizer()
        self.model = FakeModel(self.tokenizer, lengths, seed)
        self.traces = [AccessTrace(options.block_size) for _ in range(num_engines * has_traces)]
        self.engines = [
            SimulatedEngine(
                options, cost, self.clock, trace=self.traces[number] if has_traces else None
            )
            for number in range(num_engines)
        ]
        self.backends = [
            SimulatorBackend(engine, self.model, self.tokenizer) for engine in self.engines
        ]

    def run(self, program: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Runs an asyncio program that calls ``backends``, in virtual time.

        May be called again; the clock and the caches go on from where they were.

        Raises:
            EngineError: The program waits for something that will never happen.
        """
        return run(program, self.clock, _World(self.engines))

    def figures(self) -> EngineFigures:
        """Returns the totals of all engines so far."""
        total = EngineFigures()
        for engine in self.engines:
            total.add(engine.measured())
        return total

    def traced_engines(self) -> list[tuple[AccessTrace, SimulatedEngine]]:
        """Returns every trace with its engine."""
        return list(zip(self.traces, self.engines, strict=bool(self.traces)))

    def calls(self) -> list[CallRecord]:
        """Returns the records of all finished calls, engine by engine."""
        return [record for engine in self.engines for record in engine.calls]


class _World:
    """All engines as one; among events of the same moment the first engine's comes first."""

    def __init__(self, engines: list[SimulatedEngine]) -> None:
        self._engines = engines

    def prepare(self) -> None:
        for engine in self._engines:
            engine.prepare()

    def next_event_s(self) -> float | None:
        return min(
            (at for e in self._engines if (at := e.next_event_s()) is not None), default=None
        )

    def happen(self) -> None:
        moments = ((e.next_event_s(), number) for number, e in enumerate(self._engines))
        _, number = min((at, number) for at, number in moments if at is not None)
        self._engines[number].happen()
