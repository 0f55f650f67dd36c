"""Asks the prompt cache before calls are made, many calls at a time and off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from helium.runtime.backend import ModelAnswer
from helium.runtime.prompt_cache import Entry, PromptCache, entry_key

_T = TypeVar("_T")
Found = Callable[[_T, ModelAnswer | None], None]

_MAX_BATCH = 1024
"""Lookups or answers per trip to the cache; bounds how long the first of them waits."""


class CacheLookup:
    """The prompt cache as a dispatcher uses it: it never waits, and hears of no errors.

    Whatever gathers while one trip to the cache is under way makes up the next one. The cache
    belongs to the caller and stays open.
    """

    def __init__(self, cache: PromptCache, revision: str) -> None:
        """Starts nothing.

        Args:
            revision: What the engines serve: see ``PromptCache.view``.
        """
        self._cache = cache
        self._revision = revision
        self._questions: list[tuple[bytes, Found[Any], Any]] = []
        self._answers: list[tuple[bytes, str | None, Entry]] = []
        self._thread = ThreadPoolExecutor(1, "helium-prompt-cache")
        self._trips: asyncio.Task[None] | None = None

    def key(self, tenant: str | None, call: bytes) -> bytes:
        """Returns what an encoded call of a tenant is found by."""
        return entry_key(self._revision, tenant, call)

    def ask(self, key: bytes, found: Found[_T], asker: _T) -> None:
        """Looks a call up and tells ``found`` the asker and the answer, or ``None``; not before it
        returns.
        """
        self._questions.append((key, found, asker))
        self._wake()

    def tell(self, key: bytes, tenant: str | None, answer: ModelAnswer) -> None:
        """Stores an answer, some time later."""
        self._answers.append((key, tenant, Entry(answer.texts, answer.num_output_tokens)))
        self._wake()

    async def close(self) -> None:
        """Stores the answers in hand; questions in hand are not answered any more."""
        self._questions.clear()
        if self._trips is not None:
            await self._trips
        self._thread.shutdown()

    def _wake(self) -> None:
        if self._trips is None:
            self._trips = asyncio.get_running_loop().create_task(self._travel())

    async def _travel(self) -> None:
        loop = asyncio.get_running_loop()
        while self._questions or self._answers:
            if self._questions:
                asked, self._questions = (
                    self._questions[:_MAX_BATCH],
                    self._questions[_MAX_BATCH:],
                )
                keys = [key for key, _, _ in asked]
                entries = await loop.run_in_executor(self._thread, self._cache.get, keys)
                for (_, found, asker), entry in zip(asked, entries, strict=True):
                    answer = None
                    if entry is not None:
                        answer = ModelAnswer(entry.outputs, num_output_tokens=entry.num_tokens)
                    found(asker, answer)
            if self._answers:
                told, self._answers = self._answers[:_MAX_BATCH], self._answers[_MAX_BATCH:]
                await loop.run_in_executor(self._thread, self._cache.put, told)
        self._trips = None
