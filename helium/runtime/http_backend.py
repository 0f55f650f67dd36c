"""An engine behind the OpenAI HTTP API: ours, or any stock vLLM, which then ignores the hints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from helium.errors import EngineError
from helium.plan.operators import Sampling
from helium.protocol import EnginePlan
from helium.runtime.backend import EngineUnavailable, ModelAnswer, ModelCall, reported

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_OPENAI_FIELDS = (
    "max_tokens",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "n",
)

_STATUS_TIMEOUT_S = 10.0

_IDLE_CONNECTION_S = 3.0
"""How long an unused connection is kept: less than the 5 s after which vLLM closes it.

The client's own default is 5 s too. A request written while the server closes is lost ("Server
disconnected without sending a response"); calls that come together after a lull lose several at
once, and the engine would be taken for dead.
"""

_PASSING = (408, 409, 425, 429)
"""Statuses below 500 of a server that may answer the same request later."""


class HttpBackend:
    """Calls a server through the ``openai`` client; whoever calls makes failed calls again.

    Args:
        base_url: Address up to and including ``/v1``.
        model: Model to ask for where a call names none; ``None`` asks the server for its first.
        timeout_s: Seconds a single call may take.
        rank: The one of a server's data-parallel engines that plans and calls go to; ``None``
            leaves the choice to the server.
    """

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        api_key: str = "none",
        timeout_s: float = 3600.0,
        rank: int | None = None,
    ) -> None:
        from openai import DEFAULT_CONNECTION_LIMITS, AsyncOpenAI, DefaultAsyncHttpxClient

        limits = type(DEFAULT_CONNECTION_LIMITS)(
            max_connections=DEFAULT_CONNECTION_LIMITS.max_connections,
            max_keepalive_connections=DEFAULT_CONNECTION_LIMITS.max_keepalive_connections,
            keepalive_expiry=_IDLE_CONNECTION_S,
        )
        self._client: AsyncOpenAI = AsyncOpenAI(
            http_client=DefaultAsyncHttpxClient(limits=limits),
            base_url=base_url,
            api_key=api_key,
            timeout=timeout_s,
            max_retries=0,
            default_headers=None if rank is None else {"X-data-parallel-rank": str(rank)},
        )
        self._base_url = base_url
        self._model = model

    async def register(self, plan: EnginePlan) -> None:
        from openai import APIConnectionError, APIStatusError, NotFoundError

        try:
            await self._client.post(
                "/helium/plans", body=msgspec.to_builtins(plan), cast_to=dict[str, Any]
            )
        except NotFoundError:
            return
        except APIStatusError as error:
            raise EngineError(f"{self._base_url} refused the plan: {error.message}") from None
        except APIConnectionError as error:
            raise EngineUnavailable(f"{self._base_url} cannot be reached: {error}") from None

    async def call(self, request: ModelCall) -> ModelAnswer:
        from openai import APIConnectionError, APIError, APIStatusError

        call = request.call
        try:
            arguments = await self._arguments(request)
            if call.prompt is not None:
                completion = await self._client.completions.create(prompt=call.prompt, **arguments)
                texts = tuple(choice.text for choice in completion.choices)
                return _answer(texts, completion.usage, getattr(completion, "helium", None))
            messages: Any = [{"role": role, "content": text} for role, text in call.messages]
            chat = await self._client.chat.completions.create(messages=messages, **arguments)
            texts = tuple(choice.message.content or "" for choice in chat.choices)
            return _answer(texts, chat.usage, getattr(chat, "helium", None))
        except APIConnectionError as error:  # timeouts are among them
            raise EngineUnavailable(f"{self._base_url}: {error.message}") from None
        except APIStatusError as error:
            may_pass = error.status_code >= 500 or error.status_code in _PASSING
            kind = EngineUnavailable if may_pass else EngineError
            raise kind(f"{self._base_url}: {error.message}") from None
        except APIError as error:
            raise EngineError(f"{self._base_url}: {error.message}") from None

    async def _arguments(self, request: ModelCall) -> dict[str, Any]:
        call = request.call
        model = call.model or self._model
        if model is None:
            models = await self._client.models.list()
            model = self._model = models.data[0].id
        sampling = call.sampling
        arguments: dict[str, Any] = {name: getattr(sampling, name) for name in _OPENAI_FIELDS}
        if sampling.stop:
            arguments["stop"] = list(sampling.stop)
        if sampling.seed is not None:
            arguments["seed"] = sampling.seed
        extra = _extra_body(sampling)
        if request.cache_salt is not None:
            extra["cache_salt"] = request.cache_salt
        if request.context is not None:
            extra["workflow"] = msgspec.to_builtins(request.context)
        return {"model": model, "extra_body": extra, **arguments}

    async def num_engines(self) -> int:
        """Asks how many engines the server has; 1 where it does not know or cannot be reached."""
        from openai import APIError

        try:
            status = await self._client.get(
                "/helium/status", cast_to=dict[str, Any], options={"timeout": _STATUS_TIMEOUT_S}
            )
        except APIError:
            return 1
        engines = status.get("engines") if isinstance(status, dict) else None
        return len(engines) or 1 if isinstance(engines, list) else 1

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()


async def http_backends(base_url: str, **arguments: Any) -> list[HttpBackend]:
    """Returns a backend for each engine of a server, which may have several (data parallel).

    Args:
        **arguments: Of ``HttpBackend``.
    """
    backend = HttpBackend(base_url, **arguments)
    count = await backend.num_engines()
    if count == 1:
        return [backend]
    await backend.close()
    return [HttpBackend(base_url, **arguments, rank=rank) for rank in range(count)]


def _extra_body(sampling: Sampling) -> dict[str, Any]:
    extra: dict[str, Any] = {
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "min_tokens": sampling.min_tokens,
        "ignore_eos": sampling.ignore_eos,
    }
    if sampling.structured is not None:
        extra["structured_outputs"] = sampling.structured
    return extra


def _answer(texts: tuple[str, ...], usage: Any, report: Any = None) -> ModelAnswer:
    if usage is None:
        return ModelAnswer(texts)
    queue_ms, misses = reported(report)
    details = getattr(usage, "prompt_tokens_details", None)
    return ModelAnswer(
        texts=texts,
        num_prompt_tokens=usage.prompt_tokens,
        num_cached_tokens=(details.cached_tokens or 0) if details else 0,
        num_output_tokens=usage.completion_tokens or 0,
        queue_ms=queue_ms,
        misses=misses,
    )
