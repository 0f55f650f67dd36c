"""Asks the prompt cache before calls are made, many calls at a time and off the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from helium.errors import HeliumError
from helium.runtime.backend import ModelAnswer
from helium.runtime.prompt_cache import Entry, PromptCache, entry_key
from helium.runtime.revisions import RevisionOf, Revisions, always

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
Found = Callable[[_T, ModelAnswer | None], None]

_MAX_QUESTIONS = 1024
"""Lookups per trip to the cache; bounds how long the first of them waits."""

_MAX_ANSWERS = 8192
"""Answers per transaction. Nobody waits for them, and each statement of the thread waits for an
event loop that is busy."""

_MAX_ANSWER_AGE_S = 1.0
"""Answers are stored after this time even while there is always something to look up."""


class Question:
    """One call that was looked up; needed to store its answer."""

    __slots__ = ("asker", "call", "found", "key", "model", "revision", "tenant")

    def __init__(
        self, tenant: str | None, call: bytes, model: str | None, found: Found[Any], asker: Any
    ) -> None:
        self.tenant = tenant
        self.call = call
        self.model = model
        self.found = found
        self.asker = asker
        self.revision: str | None = None  # None: not looked up, nor will its answer be stored
        self.key = b""


class CacheLookup:
    """The prompt cache as a dispatcher uses it: it never waits, and hears of no errors.

    Whatever gathers while one trip to the cache is under way makes up the next one. The cache
    belongs to the caller and stays open.

    An answer is stored only if what the engines serve is the same as when the call was looked up:
    weights that changed in between may have made it, or a part of it.
    """

    def __init__(self, cache: PromptCache, revisions: Revisions | str) -> None:
        """Starts nothing.

        Args:
            revisions: What the engines serve: see ``PromptCache.view``.
        """
        self._cache = cache
        self._revisions = always(revisions) if isinstance(revisions, str) else revisions
        self._questions: list[Question] = []
        self._answers: list[tuple[Question, ModelAnswer]] = []
        self._thread = ThreadPoolExecutor(1, "helium-prompt-cache")
        self._trips: asyncio.Task[None] | None = None

    def ask(
        self, tenant: str | None, call: bytes, model: str | None, found: Found[_T], asker: _T
    ) -> Question:
        """Looks a call up and tells ``found`` the asker and the answer, or ``None``; not before it
        returns.

        Args:
            call: Encoded.
            model: That the call names.
        """
        question = Question(tenant, call, model, found, asker)
        self._questions.append(question)
        self._wake()
        return question

    def tell(self, question: Question, answer: ModelAnswer) -> None:
        """Stores the answer of a call that was looked up, some time later."""
        if question.revision is not None:
            self._answers.append((question, answer))
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
        stored_at = loop.time()
        while self._questions or self._answers:
            if self._questions:
                of = await self._ask_engines()
                asked = self._questions[:_MAX_QUESTIONS]
                del self._questions[:_MAX_QUESTIONS]
                entries = await loop.run_in_executor(self._thread, self._look_up, asked, of)
                for question, entry in zip(asked, entries, strict=True):
                    answer = None
                    if entry is not None:
                        answer = ModelAnswer(entry.outputs, num_output_tokens=entry.num_tokens)
                    question.found(question.asker, answer)
            is_due = loop.time() - stored_at > _MAX_ANSWER_AGE_S
            if self._answers and (
                is_due or not self._questions or len(self._answers) >= _MAX_ANSWERS
            ):
                told = self._answers[:_MAX_ANSWERS]
                del self._answers[:_MAX_ANSWERS]
                # After these answers were made: the revision of their questions must hold still.
                of = await self._ask_engines()
                await loop.run_in_executor(self._thread, self._store, told, of)
                stored_at = loop.time()
        self._trips = None

    async def _ask_engines(self) -> RevisionOf | None:
        try:
            return await self._revisions()
        except HeliumError as error:
            logger.warning("the prompt cache is not used for now: %s", error)
        except Exception:
            logger.exception("the prompt cache is not used for now: no engine tells what it serves")
        return None

    def _look_up(
        self, questions: Sequence[Question], of: RevisionOf | None
    ) -> Sequence[Entry | None]:
        if of is None:
            return [None] * len(questions)
        for question in questions:
            question.revision = of(question.model)
            question.key = entry_key(question.revision, question.tenant, question.call)
        return self._cache.get([question.key for question in questions])

    def _store(self, told: Sequence[tuple[Question, ModelAnswer]], of: RevisionOf | None) -> None:
        if of is None:
            return
        self._cache.put(
            [
                (question.key, question.tenant, Entry(answer.texts, answer.num_output_tokens))
                for question, answer in told
                if of(question.model) == question.revision
            ]
        )
