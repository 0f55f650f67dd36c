"""The backend inside an API server: its ``AsyncLLM``, beside the server's own traffic.

An ``AsyncLLM`` with data parallelism is several engines, of which vLLM takes the least loaded for
each request. A call of a planned run goes to the rank that it was placed on instead.
"""

from __future__ import annotations

import asyncio
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vllm.inputs import tokens_input

from helium.errors import EngineError
from helium.plan.calls import Call
from helium.protocol import EnginePlan
from helium.runtime.backend import EngineGone, ModelAnswer, ModelCall
from vllm_helium.engine_calls import answer_of, check_model, render, request_params
from vllm_helium.integration.engine_rpc import (
    call_engine_async,
    call_engines_async,
    num_engines,
)
from vllm_helium.integration.texts_so_far import texts_so_far

_LONG_PROMPT = 20_000
"""Characters from which a prompt is tokenized on a thread; shorter ones take under 10 ms."""


class AsyncLLMBackend:
    """Runs calls on an ``AsyncLLM``, which batches them with everything else it serves."""

    def __init__(
        self,
        engine_client: Any,
        models: Any = None,
        *,
        rank: int | None = None,
        thread: ThreadPoolExecutor | None = None,
    ) -> None:
        """Starts nothing.

        Args:
            models: The server's ``OpenAIServingModels``, which knows aliases and LoRA adapters.
                Without it calls may name the served model alone.
            rank: The one of several data-parallel engines that calls go to; ``None`` leaves the
                choice to vLLM.
            thread: Renders long prompts; one of its own by default.
        """
        self._rank = rank
        self._client = engine_client
        self._tokenizer = engine_client.get_tokenizer()
        self._model_config = engine_client.model_config
        self._models = models
        self._has_plans = engine_client.vllm_config.helium_config is not None
        self._under_way: dict[int, str] = {}
        self._ids = (f"helium-{id(self):x}-{number}" for number in itertools.count())
        # One thread: a Hugging Face tokenizer is not to be used by several at once.
        self._thread = thread or ThreadPoolExecutor(1, "helium-render")
        widest = getattr(self._tokenizer, "max_chars_per_token", None)
        self._max_chars = self._model_config.max_model_len * widest if widest else None

    async def register(self, plan: EnginePlan) -> None:
        if not self._has_plans:
            return
        encoded = plan.to_json()
        try:
            if self._rank is None:
                await call_engines_async(self._client, "register_plan", encoded)
            else:
                await call_engine_async(self._client, self._rank, "register_plan", encoded)
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
            EngineGone: The engine has died.
            EngineError: The engine refused or ended it.
        """
        try:
            lora = self._adapter(request.call)
            token_ids = await self._render(request.call)
            prompt = tokens_input(token_ids, cache_salt=request.cache_salt)
            params = request_params(request, with_context=self._has_plans)
            last = None
            more = {} if self._rank is None else {"data_parallel_rank": self._rank}
            request_id = self._under_way[id(request)] = next(self._ids)
            stream = self._client.generate(prompt, params, request_id, lora_request=lora, **more)
            async for output in stream:
                last = output
        except EngineError:
            raise
        except Exception as error:
            raise self._engine_error(error) from error
        finally:
            self._under_way.pop(id(request), None)
        if last is None:
            raise EngineError("the engine gave no output")
        return answer_of(last)

    def texts(self, request: ModelCall) -> dict[int, str]:
        """Returns the outputs so far of a call under way, by index; see ``GrowingBackend``."""
        request_id = self._under_way.get(id(request))
        return {} if request_id is None else texts_so_far(self._client, request_id)

    def _engine_error(self, error: Exception) -> EngineError:
        kind = EngineGone if self._client.errored else EngineError
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


def async_backends(engine_client: Any, models: Any = None) -> list[AsyncLLMBackend]:
    """Returns a backend for each engine that a run's calls can be placed on.

    Without Helium nothing places calls, so vLLM chooses the engine of each. The arguments are those
    of ``AsyncLLMBackend``.
    """
    count = num_engines(engine_client)
    if count == 1 or engine_client.vllm_config.helium_config is None:
        return [AsyncLLMBackend(engine_client, models)]
    # Of one tokenizer, so its prompts are rendered by one thread.
    thread = ThreadPoolExecutor(1, "helium-render")
    return [
        AsyncLLMBackend(engine_client, models, rank=rank, thread=thread) for rank in range(count)
    ]
