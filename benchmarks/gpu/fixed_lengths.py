"""Engines whose answers are as long as the workload says, however little a model has to say."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple
from zlib import crc32

import msgspec

from benchmarks.output_lengths import output_lengths
from benchmarks.workflows import Workload
from helium.cost import Profile, operator_signatures
from helium.plan.calls import Call
from helium.plan.interpret import interpret
from helium.protocol import EnginePlan
from helium.runtime import EngineBackend, ModelAnswer, ModelCall
from vllm_helium.simulator.fake_model import DEFAULT_MAX_TOKENS

Lengths = Callable[[Call], int]
"""Tokens of a call's answer."""


def answer_lengths(workflow: str) -> Lengths:
    """Returns the mean length of every agent's answers, in proportion to the call's limit."""
    mean = output_lengths(workflow).mean

    def length(call: Call) -> int:
        limit = call.sampling.max_tokens or DEFAULT_MAX_TOKENS
        found = mean(call)
        return limit if found is None else max(1, round(found * limit / DEFAULT_MAX_TOKENS))

    return length


def learned_profile(workload: Workload, lengths: Lengths, num_rows: int = 2) -> Profile:
    """Returns what a sample run over the first rows would teach about output lengths."""
    sample = {name: values[:num_rows] for name, values in workload.batch.items()}
    compiled = workload.graph.compile(**sample)
    profile, signatures = Profile(), operator_signatures(compiled.plan)

    def answer(call: Call, operator: str, row: int) -> tuple[str, ...]:
        profile.observe_output(signatures[operator], lengths(call))
        return (" ".join(["w0"] * lengths(call)),) * call.sampling.n

    interpret(compiled, answer)
    return profile


class TimedCall(NamedTuple):
    """A call that was answered; seconds of ``time.perf_counter``."""

    start_s: float
    end_s: float
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int


class FixedLengthEngine:
    """Passes calls on with their length fixed, and keeps what each took.

    Attributes:
        calls: Those answered so far.
        num_started: Those made so far.
    """

    def __init__(
        self, engine: EngineBackend, lengths: Lengths, has_context: bool, has_seeds: bool = True
    ) -> None:
        """Wraps an engine.

        Args:
            has_context: Whether it is told plans and contexts.
            has_seeds: Whether equal prompts get equal answers. vLLM's CPU runner cannot: it fails
                on a seeded call whose prompt is computed in several steps.
        """
        self.calls: list[TimedCall] = []
        self.num_started = 0
        self._engine = engine
        self._lengths = lengths
        self._has_context = has_context
        self._has_seeds = has_seeds

    async def register(self, plan: EnginePlan) -> None:
        if self._has_context:
            await self._engine.register(plan)

    async def call(self, request: ModelCall) -> ModelAnswer:
        # With end-of-sequence ignored the limit is the length; a minimum would only add work.
        # A model without training says much the same to every prompt, and what reads equal answers
        # would be merged: so its words are drawn, the same ones for the same prompt.
        prompt = msgspec.json.encode((request.call.messages, request.call.prompt))
        sampling = msgspec.structs.replace(
            request.call.sampling,
            max_tokens=self._lengths(request.call),
            ignore_eos=True,
            temperature=1.0,
            seed=crc32(prompt) if self._has_seeds else None,
        )
        call = msgspec.structs.replace(request.call, sampling=sampling)
        context = request.context if self._has_context else None
        self.num_started += 1
        start_s = time.perf_counter()
        answer = await self._engine.call(
            msgspec.structs.replace(request, call=call, context=context)
        )
        self.calls.append(
            TimedCall(
                start_s,
                time.perf_counter(),
                answer.num_prompt_tokens,
                answer.num_cached_tokens,
                answer.num_output_tokens,
            )
        )
        return answer
