"""The in-process backend: an ``LLM`` stepped by one thread while calls come and go.

Calls join and leave the running batch as they are made, as in a server; the runtime's event loop
never blocks on the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from vllm.inputs import tokens_input
from vllm.outputs import RequestOutput

from helium.errors import EngineError
from helium.protocol import EnginePlan
from helium.runtime.backend import EngineGone, ModelAnswer, ModelCall
from vllm_helium.engine_calls import answer_of, check_model, render, request_params
from vllm_helium.integration.engine_rpc import call_engines, has_own_work

if TYPE_CHECKING:
    from vllm import LLM

_STOP = object()


class LLMBackend:
    """Runs calls on an ``LLM``; use it as a context manager, or call ``close``.

    While it is open nothing else may drive the same ``LLM``.
    """

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._engine = llm.llm_engine
        self._tokenizer = llm.get_tokenizer()
        self._has_plans = self._engine.vllm_config.helium_config is not None
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._under_way: dict[str, Future[ModelAnswer]] = {}
        self._closed_because: EngineError | None = None
        self._ids = (f"helium-{id(self):x}-{number}" for number in itertools.count())
        self._thread = threading.Thread(target=self._serve, name="helium-engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> LLMBackend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the thread; calls under way fail."""
        self._inbox.put(_STOP)
        self._thread.join()

    async def register(self, plan: EnginePlan) -> None:
        if self._has_plans:
            await self._on_engine(lambda: call_engines(self._llm, "register_plan", plan.to_json()))

    async def weights(self) -> str:
        """Names the engine's weights; changes whenever they may have changed in place.

        Raises:
            EngineError: The engine cannot be asked.
        """
        if not self._has_plans:
            return ""
        try:
            answers = await self._on_engine(lambda: call_engines(self._llm, "weights_revision"))
        except Exception as error:
            raise EngineError(f"{type(error).__name__}: {error}") from error
        return " ".join(answers)

    def adapter(self, model: str | None) -> None:
        """Returns the LoRA adapter that a model's name stands for: here none does."""

    async def call(self, request: ModelCall) -> ModelAnswer:
        """Answers one call.

        Raises:
            EngineGone: The engine has died.
            EngineError: The engine refused or aborted it.
        """
        request_id = next(self._ids)
        future: Future[ModelAnswer] = Future()
        self._inbox.put(lambda: self._add(request_id, request, future))
        if self._closed_because is not None:
            self._answer_late_calls()
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            self._inbox.put(lambda: self._abort(request_id))
            raise

    async def _on_engine(self, work: Any) -> Any:
        future: Future[Any] = Future()

        def run() -> None:
            try:
                if self._closed_because is not None:
                    raise self._closed_because
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)

        self._inbox.put(run)
        if self._closed_because is not None:
            self._answer_late_calls()
        return await asyncio.wrap_future(future)

    def _serve(self) -> None:
        """The engine's thread: takes what has come, then makes one step; sleeps when idle."""
        while True:
            is_idle = not self._has_work()
            try:
                while True:
                    work = self._inbox.get(block=is_idle)
                    if work is _STOP:
                        self._shut(EngineError("the backend was closed"))
                        return
                    work()
                    is_idle = is_idle and not self._has_work()
            except queue.Empty:
                pass
            try:
                for output in self._engine.step():
                    self._deliver(output)
            except Exception as error:
                self._shut(EngineGone(f"the engine failed: {type(error).__name__}: {error}"))
                return

    def _has_work(self) -> bool:
        return self._engine.has_unfinished_requests() or has_own_work(self._llm)

    def _add(self, request_id: str, request: ModelCall, future: Future[ModelAnswer]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            if self._closed_because is not None:
                raise self._closed_because
            check_model(request.call, self._llm.model_config.served_model_name)
            token_ids = render(request.call, self._tokenizer)
            prompt = tokens_input(token_ids, cache_salt=request.cache_salt)
            params = request_params(request, with_context=self._has_plans)
            self._engine.add_request(request_id, prompt, params)
            self._under_way[request_id] = future
        except EngineError as error:
            future.set_exception(error)
        except Exception as error:
            future.set_exception(EngineError(f"{type(error).__name__}: {error}"))

    def _abort(self, request_id: str) -> None:
        if self._under_way.pop(request_id, None) is not None:
            self._engine.abort_request([request_id])

    def _deliver(self, output: RequestOutput) -> None:
        if not output.finished:
            return
        future = self._under_way.pop(output.request_id, None)
        if future is None or future.done():
            return
        try:
            future.set_result(answer_of(output))
        except EngineError as error:
            future.set_exception(error)

    def _shut(self, reason: EngineError) -> None:
        """Ends every call under way, and those that come after, with a reason."""
        self._closed_because = reason
        under_way, self._under_way = self._under_way, {}
        for future in under_way.values():
            future.set_exception(reason)
        self._answer_late_calls()
        if not isinstance(reason, EngineGone):
            self._engine.abort_request(list(under_way))

    def _answer_late_calls(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                work = self._inbox.get_nowait()
                if work is not _STOP:
                    work()
