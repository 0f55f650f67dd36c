"""How outputs have grown between two looks at them, for one who watches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from helium.runtime.events import CallDelta, CallFinished, Event, RowFailed


class Deltas:
    """What one watcher has been told of calls under way."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, int], dict[int, str]] = {}

    def grow(self, operator: str, row: int, texts: Mapping[int, str]) -> Iterator[CallDelta]:
        """Yields what is new in a call's outputs so far, given by index."""
        told = self._told.setdefault((operator, row), {})
        for index, text in texts.items():
            before = told.get(index, "")
            # A call that is made again says the same once more, if it is deterministic.
            if not before.startswith(text):
                yield _delta(operator, row, index, before, text)
                told[index] = text

    def end(self, event: Event) -> Iterator[CallDelta]:
        """Yields what is missing of a call's outputs, if the event ends the call.

        Of a call that nothing was told of, nothing is told now: the event has all of it.
        """
        if not isinstance(event, CallFinished | RowFailed):
            return
        told = self._told.pop((event.operator, event.row), None)
        if not told or isinstance(event, RowFailed):
            return
        for index, text in enumerate(event.outputs):
            before = told.get(index, "")
            if text != before:
                yield _delta(event.operator, event.row, index, before, text)


def _delta(operator: str, row: int, index: int, before: str, text: str) -> CallDelta:
    if text.startswith(before):
        return CallDelta(operator, row, index, text[len(before) :])
    return CallDelta(operator, row, index, text, replaces=True)
