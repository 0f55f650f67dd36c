"""What engines serve, as strings: answers are the same only where these are equal.

Weights may change while an engine runs, so a revision is asked for whenever answers are looked up
or stored, not once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

RevisionOf = Callable[[str | None], str]
"""Model or adapter as a call names it, ``None`` for the engine's own -> what it is at present."""

Revisions = Callable[[], Awaitable[RevisionOf]]
"""Asks the engines; raises ``EngineError`` where they cannot tell."""


def constant(revision: str) -> RevisionOf:
    """Returns the revision of engines that never change."""
    return lambda _: revision


def always(revision: str) -> Revisions:
    """``constant``, asked for each time."""
    of = constant(revision)

    async def revisions() -> RevisionOf:
        return of

    return revisions
