"""Cutting a rendered prompt at the borders of its template's runs."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from helium.templates.rendering import Run, VariableRun

_TOKEN_BYTES = 4


def segment_lengths(runs: Sequence[Run], prompt: Sequence[int]) -> tuple[int, ...]:
    """Returns how many tokens of a prompt belong to each run; empty if the prompt does not fit.

    Static runs are looked for from left to right, each at the first place it fits, which finds a
    cut whenever there is one. Several values in a row cannot be told apart: the first one gets all
    but what static text among them takes. Linear in the prompt for all but contrived ones.

    Args:
        runs: From below the root to the leaf, for example of ``TemplateTree.path``.
        prompt: Token ids of the whole prompt.
    """
    tokens = array("i", prompt).tobytes()
    lengths: list[int] = []
    position = 0  # in tokens
    index = 0
    while index < len(runs):
        stop = index
        while stop < len(runs) and isinstance(runs[stop], VariableRun):
            stop += 1
        values = [run for run in runs[index:stop] if isinstance(run, VariableRun)]
        index = stop
        while stop < len(runs) and not isinstance(runs[stop], VariableRun):
            stop += 1
        static = [run for run in runs[index:stop] if isinstance(run, bytes)]
        index = stop
        needle = b"".join(static)
        start = _find(tokens, needle, position, bool(values), index == len(runs))
        if start < 0:
            return ()
        lengths += _share(values, start - position)
        lengths += [len(run) // _TOKEN_BYTES for run in static]
        position = start + len(needle) // _TOKEN_BYTES
    return tuple(lengths) if position * _TOKEN_BYTES == len(tokens) else ()


def _find(tokens: bytes, needle: bytes, position: int, is_open: bool, is_last: bool) -> int:
    """Returns the token at which ``needle`` starts, or -1.

    Args:
        is_open: Whether a value of any length comes first.
        is_last: Whether the prompt ends with it.
    """
    offset = position * _TOKEN_BYTES
    if is_last:
        start = len(tokens) - len(needle)
        is_there = start >= offset and tokens.endswith(needle)
        return start // _TOKEN_BYTES if is_there and (is_open or start == offset) else -1
    if not is_open:
        return position if tokens.startswith(needle, offset) else -1
    start = tokens.find(needle, offset)
    while start >= 0 and start % _TOKEN_BYTES:
        start = tokens.find(needle, start + 1)
    return start // _TOKEN_BYTES if start >= 0 else -1


def _share(values: Sequence[VariableRun], length: int) -> list[int]:
    """Splits ``length`` tokens among neighbouring runs without static tokens between them."""
    lengths: list[int] = []
    for value in values:
        taken = min(length - sum(lengths), value.num_join_tokens)
        lengths.append(taken)
    rest = length - sum(lengths)
    if lengths:
        first = next((i for i, value in enumerate(values) if value.value is not None), 0)
        lengths[first] += rest
    return lengths
