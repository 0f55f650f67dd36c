"""The backend inside an API server: its ``AsyncLLM``, beside the server's own traffic."""

from __future__ import annotations

import asyncio
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vllm.inputs import tokens_input

from helium.errors import EngineError
from helium.plan.calls import Call
from helium.protocol import EnginePlan
from helium.runtime.backend import EngineGone, EngineUnavailable, ModelAnswer, ModelCall
from vllm_helium.engine_calls import answer_of, check_model, render, request_params
from vllm_helium.integration.engine_rpc import call_engines_async

_LONG_PROMPT = 20_000
"""Characters from which a prompt is tokenized on a thread; shorter ones take under 10 ms."""


class AsyncLLMBackend:
    """Runs calls on an ``AsyncLLM``, which batches them with everything else it serves."""

    def __init__(
        self,
        engine_client: Any,
        models: Any = None,
        when_dead: type[EngineUnavailable | EngineGone] = EngineGone,
    ) -> None:
        """Starts nothing.

        Args:
            models: The server's ``OpenAIServingModels``, which knows aliases and LoRA adapters.
                Without it calls may name the served model alone.
            when_dead: What is raised once the engine has died. Where the whole process ends with it
                and is started again, it is unavailable for now: runs are left off, and go on later.
        """
        self._client = engine_client
        self._when_dead = when_dead
        self._tokenizer = engine_client.get_tokenizer()
        self._model_config = engine_client.model_config
        self._models = models
        self._has_plans = engine_client.vllm_config.helium_config is not None
        self._ids = (f"helium-{id(self):x}-{number}" for number in itertools.count())
        # One thread: a Hugging Face tokenizer is not to be used by several at once.
        self._thread = ThreadPoolExecutor(1, "helium-render")
        widest = getattr(self._tokenizer, "max_chars_per_token", None)
        self._max_chars = self._model_config.max_model_len * widest if widest else None

    async def register(self, plan: EnginePlan) -> None:
        if self._has_plans:
            try:
                await call_engines_async(self._client, "register_plan", plan.to_json())
            except Exception as error:
                raise self._engine_error(error) from error

    async def weights(self) -> str:
        """Names the engines' weights; changes whenever they may have changed in place.

        Raises:
            EngineError: The engines cannot be asked.
        """
        if not self._has_plans:
            return ""
        try:
            return " ".join(await call_engines_async(self._client, "weights_revision"))
        except Exception as error:
            raise self._engine_error(error) from error

    def adapter(self, model: str | None) -> Any:
        """Returns the LoRA adapter that a model's name stands for at present, or ``None``."""
        return self._models.lora_requests.get(model) if self._models is not None else None

    async def call(self, request: ModelCall) -> ModelAnswer:
        """Answers one call; cancelling it aborts the request.

        Raises:
            EngineUnavailable: The engine has died, or ``EngineGone``; see ``when_dead``.
            EngineError: The engine refused or ended it.
        """
        try:
            lora = self._adapter(request.call)
            token_ids = await self._render(request.call)
            prompt = tokens_input(token_ids, cache_salt=request.cache_salt)
            params = request_params(request, with_context=self._has_plans)
            last = None
            stream = self._client.generate(prompt, params, next(self._ids), lora_request=lora)
            async for output in stream:
                last = output
        except EngineError:
            raise
        except Exception as error:
            raise self._engine_error(error) from error
        if last is None:
            raise EngineError("the engine gave no output")
        return answer_of(last)

    def _engine_error(self, error: Exception) -> EngineError:
        kind = self._when_dead if self._client.errored else EngineError
        return kind(f"{type(error).__name__}: {error}")

    def _adapter(self, call: Call) -> Any:
        """Returns the LoRA adapter a call names, ``None`` for the model itself.

        Raises:
            EngineError: The name is neither an alias of the model nor an adapter.
        """
        if self._models is None:
            check_model(call, self._model_config.served_model_name)
            return None
        if call.model is None or self._models.is_base_model(call.model):
            return None
        adapter = self._models.lora_requests.get(call.model)
        if adapter is None:
            names = [path.name for path in self._models.base_model_paths]
            check_model(call, [*names, *self._models.lora_requests])
        return adapter

    async def _render(self, call: Call) -> list[int]:
        texts = [call.prompt] if call.prompt is not None else [text for _, text in call.messages]
        num_chars = sum(len(text) for text in texts if text)
        if self._max_chars is not None and num_chars > self._max_chars:
            raise EngineError(
                f"the prompt has {num_chars} characters, which is more than the model's "
                f"{self._model_config.max_model_len} tokens can hold; shorten it"
            )
        if num_chars < _LONG_PROMPT:
            return render(call, self._tokenizer)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, render, call, self._tokenizer)
