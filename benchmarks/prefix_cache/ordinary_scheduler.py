"""Ordinary traffic over the real scheduler and KV cache manager, without a model.

Time is virtual (a roofline of an 8B model on an H100), so calls, hits, preemptions and latencies
are the same in every run; what is measured is the CPU time of the scheduler itself.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from benchmarks.prefix_cache.chat_traffic import Conversation, made_up_answer, turn_ids
from helium.cost import RooflineModel
from vllm_helium.simulator.engine import SimulatedEngine
from vllm_helium.simulator.engine_options import EngineOptions
from vllm_helium.simulator.figures import CallRecord, quantile
from vllm_helium.simulator.virtual_time import VirtualClock, run


@dataclass
class Replay:
    """One replay of the traffic.

    Attributes:
        counts: What happened, and when in virtual time; equal in every replay by the same system.
        cpu_s: Seconds of CPU by part: ``add`` (a request is made and queued, hashes included),
            ``schedule`` and ``update``.
        step_cpu_s: Seconds of CPU of each step, ``schedule`` and ``update`` together.
    """

    counts: dict[str, Any] = field(default_factory=dict)
    cpu_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_PARTS, 0.0))
    step_cpu_s: list[float] = field(default_factory=list)


_PARTS = ("add", "schedule", "update")


class SchedulerArm:
    """An engine without a model; replays the same traffic again and again.

    Args:
        system: ``stock`` or ``helium``.
    """

    def __init__(self, system: str, traffic: Sequence[Conversation], num_blocks: int) -> None:
        self._traffic = traffic
        self._clock = VirtualClock()
        options = EngineOptions(
            num_blocks=num_blocks,
            max_num_seqs=256,
            max_model_len=16_384,
            helium=system == "helium",
        )
        cost = RooflineModel.preset("H100-80GB", "Qwen3-8B")
        self._engine = SimulatedEngine(options, cost, self._clock, has_short_steps=False)
        self._ids = itertools.count()
        self._replay = Replay()
        scheduler = self._engine.scheduler
        scheduler.schedule = self._timed("schedule", scheduler.schedule)
        scheduler.update_from_output = self._timed("update", scheduler.update_from_output)
        self._add = self._timed("add", self._engine.add)

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            result = function(*args, **kwargs)
            elapsed = time.thread_time() - start
            self._replay.cpu_s[part] += elapsed
            if part == "schedule":
                self._replay.step_cpu_s.append(elapsed)
            elif part == "update":
                # Of one of the last steps, of the same size: steps overlap.
                self._replay.step_cpu_s[-1] += elapsed
            return result

        return timed

    def replay(self) -> Replay:
        """Serves all conversations from an empty cache."""
        engine = self._engine
        engine.reset_prefix_cache()
        gc.collect()
        gc.freeze()
        self._replay = replay = Replay()
        before, num_before = _copy(engine), len(engine.calls)
        start_s = self._clock.now()
        run(lambda: self._program(), self._clock, engine)
        calls = engine.calls[num_before:]
        figures = engine.measured().since(before).to_dict()
        latencies = [call.latency_s for call in calls]
        makespan_s = max(call.finish_s for call in calls) - start_s
        replay.counts = {
            name: figures[name]
            for name in (
                "num_calls",
                "num_steps",
                "num_prompt_tokens",
                "num_cached_tokens",
                "num_prefill_tokens",
                "num_output_tokens",
                "num_evictions",
                "num_preemptions",
            )
        } | {
            "output_tokens_per_virtual_s": figures["num_output_tokens"] / makespan_s,
            "virtual_latency_p50_s": quantile(latencies, 0.5),
            "virtual_latency_p99_s": quantile(latencies, 0.99),
        }
        return replay

    async def _program(self) -> None:
        await asyncio.gather(*(self._converse(one) for one in self._traffic))

    async def _converse(self, conversation: Conversation) -> None:
        await asyncio.sleep(conversation.arrival_s)
        history: list[int] = []
        for number, turn in enumerate(conversation.turns):
            await asyncio.sleep(turn.think_s)
            history += turn.question
            answer = made_up_answer(conversation.number, number, turn.answer_tokens)
            finished: asyncio.Future[CallRecord] = asyncio.get_running_loop().create_future()
            self._add(
                turn_ids(self._ids, conversation.number, number),
                list(history),
                answer,
                SamplingParams(
                    temperature=0.0,
                    max_tokens=turn.answer_tokens,
                    ignore_eos=True,
                    output_kind=RequestOutputKind.FINAL_ONLY,
                ),
                finished.set_result,
            )
            await finished
            history += answer


def _copy(engine: SimulatedEngine) -> Any:
    from dataclasses import replace

    return replace(engine.measured())
