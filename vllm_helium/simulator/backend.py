"""A simulated engine behind the runtime's interface."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from helium.errors import EngineError
from helium.protocol import EnginePlan
from helium.runtime.backend import ModelAnswer, ModelCall
from vllm_helium.request import write_context
from vllm_helium.simulator.engine import SimulatedEngine
from vllm_helium.simulator.fake_model import DEFAULT_MAX_TOKENS, FakeModel, Output
from vllm_helium.simulator.figures import CallRecord
from vllm_helium.simulator.tokenizer import PieceTokenizer


class SimulatorBackend:
    """Answers calls in virtual time; use it inside ``Simulation.run``.

    A scheduler that knows plans (it has ``helium_rpc``) gets plans and contexts; for any other one
    every call is ordinary traffic, as with stock vLLM.
    """

    def __init__(
        self, engine: SimulatedEngine, model: FakeModel, tokenizer: PieceTokenizer
    ) -> None:
        self.engine = engine
        self._model = model
        self._tokenizer = tokenizer
        self._has_plans = hasattr(engine.scheduler, "helium_rpc")
        self._ids = (f"call-{number:06d}" for number in itertools.count())

    async def register(self, plan: EnginePlan) -> None:
        if self._has_plans:
            self.engine.scheduler.helium_rpc("register_plan", plan.to_json())

    async def call(self, request: ModelCall) -> ModelAnswer:
        """Answers one call; ``n`` outputs are as many sequences.

        Raises:
            EngineError: The prompt and its answer are too long, or outputs are constrained.
        """
        call = request.call
        if call.sampling.structured is not None:
            raise EngineError("simulated engine: structured outputs are not simulated")
        prompt = self._tokenizer.token_ids(self._render(request))
        outputs = self._model.answer(call)
        sequences = [self._generate(request, prompt, output) for output in outputs]
        records = await asyncio.gather(*sequences)
        return ModelAnswer(
            texts=tuple(output.text for output in outputs),
            num_prompt_tokens=len(prompt),
            num_cached_tokens=records[0].num_cached_tokens,
            num_output_tokens=sum(record.num_output_tokens for record in records),
        )

    async def _generate(self, request: ModelCall, prompt: list[int], output: Output) -> CallRecord:
        future: asyncio.Future[CallRecord] = asyncio.get_running_loop().create_future()
        request_id = next(self._ids)
        self.engine.add(
            request_id,
            prompt,
            output.token_ids,
            self._params(request),
            lambda record: None if future.done() else future.set_result(record),
            request.cache_salt,
        )
        try:
            return await future
        except asyncio.CancelledError:
            self.engine.abort(request_id)
            raise

    def _render(self, request: ModelCall) -> str:
        call = request.call
        if call.prompt is not None:
            return self._tokenizer.render_completion(call.prompt)
        messages = [{"role": role, "content": content} for role, content in call.messages]
        return self._tokenizer.render_chat(messages, add_reply=True)

    def _params(self, request: ModelCall) -> SamplingParams:
        sampling = request.call.sampling
        extra_args: dict[str, Any] = {}
        if self._has_plans:
            write_context(extra_args, request.context)
        params = SamplingParams(
            temperature=sampling.temperature,
            seed=sampling.seed,
            max_tokens=sampling.max_tokens or DEFAULT_MAX_TOKENS,
            ignore_eos=sampling.ignore_eos,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=extra_args or None,
        )
        params.update_from_generation_config({}, self._tokenizer.end_of_turn)
        return params
