"""The backend inside an API server: its ``AsyncLLM``, beside the server's own traffic."""

from __future__ import annotations

import itertools
from typing import Any

from vllm.inputs import tokens_input

from helium.errors import EngineError
from helium.protocol import EnginePlan
from helium.runtime.backend import ModelAnswer, ModelCall
from vllm_helium.engine_calls import answer_of, check_model, render, request_params
from vllm_helium.integration.engine_rpc import call_engines_async


class AsyncLLMBackend:
    """Runs calls on an ``AsyncLLM``, which batches them with everything else it serves."""

    def __init__(self, engine_client: Any) -> None:
        self._client = engine_client
        self._tokenizer = engine_client.get_tokenizer()
        self._served = engine_client.model_config.served_model_name
        self._has_plans = engine_client.vllm_config.helium_config is not None
        self._ids = (f"helium-{id(self):x}-{number}" for number in itertools.count())

    async def register(self, plan: EnginePlan) -> None:
        if self._has_plans:
            await call_engines_async(self._client, "register_plan", plan.to_json())

    async def call(self, request: ModelCall) -> ModelAnswer:
        """Answers one call; cancelling it aborts the request.

        Raises:
            EngineError: The engine refused or ended it.
        """
        try:
            check_model(request.call, self._served)
            token_ids = render(request.call, self._tokenizer)
            prompt = tokens_input(token_ids, cache_salt=request.cache_salt)
            params = request_params(request, with_context=self._has_plans)
            last = None
            async for output in self._client.generate(prompt, params, next(self._ids)):
                last = output
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"{type(error).__name__}: {error}") from error
        if last is None:
            raise EngineError("the engine gave no output")
        return answer_of(last)
