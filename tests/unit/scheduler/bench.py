"""A simulated engine with our scheduler, driven by hand; every step is written down."""

from __future__ import annotations

from typing import Any

from vllm import SamplingParams

from helium.cost import RooflineModel
from helium.protocol import EnginePlan, WorkflowContext
from vllm_helium.request import write_context
from vllm_helium.simulator.engine import SimulatedEngine
from vllm_helium.simulator.engine_options import EngineOptions
from vllm_helium.simulator.figures import CallRecord
from vllm_helium.simulator.virtual_time import VirtualClock

COST = RooflineModel.preset("H100-80GB", "Qwen3-8B")


class Bench:
    """Calls go in, steps are taken one by one.

    Attributes:
        steps: Tokens scheduled per request, for every step so far.
    """

    def __init__(self, helium: dict[str, Any] | bool = True, **options: Any) -> None:
        self.clock = VirtualClock()
        options = {"num_blocks": 400, "async_scheduling": False, **options}
        self.engine = SimulatedEngine(EngineOptions(helium=helium, **options), COST, self.clock)
        self.scheduler = self.engine.scheduler
        self.ended: dict[str, CallRecord] = {}
        self.steps: list[dict[str, int]] = []
        schedule = self.scheduler.schedule

        def schedule_and_note(*args: Any, **kwargs: Any) -> Any:
            output = schedule(*args, **kwargs)
            self.steps.append(dict(output.num_scheduled_tokens))
            return output

        self.scheduler.schedule = schedule_and_note

    def register(self, plan: EnginePlan) -> str:
        return self.scheduler.helium_rpc("register_plan", plan.to_json())["digest"]

    def add(
        self,
        name: str,
        prompt: list[int],
        num_output: int = 1,
        context: WorkflowContext | None = None,
        salt: str | None = None,
    ) -> None:
        params = SamplingParams(temperature=0.0, max_tokens=num_output, ignore_eos=True)
        if context is not None:
            params.extra_args = {}
            write_context(params.extra_args, context)
        output = [1_000_000 + number for number in range(num_output)]
        with self.clock.as_time():
            self.engine.add(
                name,
                prompt,
                output,
                params,
                lambda record: self.ended.update({record.request_id: record}),
                salt,
            )

    def step(self) -> dict[str, int]:
        """Takes one step; returns the tokens it scheduled."""
        before = len(self.steps)
        with self.clock.as_time():
            self.engine.prepare()
            at = self.engine.next_event_s()
            if at is not None:
                self.clock.advance_to(at)
                self.engine.happen()
        return self.steps[before] if len(self.steps) > before else {}

    def finish(self) -> None:
        """Takes steps until nothing is under way."""
        self.step()
        while self.scheduler.has_unfinished_requests() or self.engine.next_event_s() is not None:
            self.step()

    def admitted(self) -> list[str]:
        """Requests in order of the step they first ran in."""
        return list(dict.fromkeys(name for step in self.steps for name in step))


def tokens(start: int, count: int) -> list[int]:
    return list(range(start, start + count))
