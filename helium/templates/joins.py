"""Which tokens of a static text stay the same whatever stands beside it.

A tokenizer may merge the end of a static text with the beginning of the value that follows it. Only
tokens between two safe cuts are claimed as static; what is left over at either end is a *join*,
whose tokens depend on the neighbouring value.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from typing import NamedTuple

from helium.templates.tokenizer import PromptTokenizer

_SINGLE_SPACE = re.compile(r"(?<=\S) (?=\S)")
_MAX_CANDIDATES = 4
_WINDOW = 64
"""Characters on either side of a candidate that are looked at; far more than one pre-token."""


class Claim(NamedTuple):
    """A static text, cut.

    Attributes:
        head: Text whose tokens depend on what is before it.
        token_ids: The tokens of the middle, int32 in native byte order.
        tail: Text whose tokens depend on what follows.
        num_head_tokens, num_tail_tokens: Tokens of head and tail when nothing is beside them.
    """

    head: str
    token_ids: bytes
    tail: str
    num_head_tokens: int
    num_tail_tokens: int


class JoinFinder:
    """Cuts static texts; remembers its answers, since operators repeat each other's texts."""

    def __init__(self, tokenizer: PromptTokenizer) -> None:
        self._tokenizer = tokenizer
        special = sorted(tokenizer.special_tokens(), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special))) if special else None
        self._claims: dict[tuple[str, bool, bool], Claim] = {}

    def claim(self, text: str, is_open_left: bool, is_open_right: bool) -> Claim:
        """Cuts ``text``.

        Args:
            is_open_left: A value of unknown text comes right before it.
            is_open_right: A value of unknown text follows.
        """
        key = (text, is_open_left, is_open_right)
        claim = self._claims.get(key)
        if claim is None:
            claim = self._claims[key] = self._claim(*key)
        return claim

    def _claim(self, text: str, is_open_left: bool, is_open_right: bool) -> Claim:
        head = self._head_cut(text) if is_open_left else 0
        tail = self._tail_cut(text) if is_open_right else len(text)
        encoding = self._tokenizer.encode(text)
        token_ids = encoding.token_ids
        if head >= tail:  # nothing is safe: all of it joins what follows
            return Claim("", b"", text, 0, len(token_ids))
        num_head = encoding.num_before(head) if head else 0
        num_rest = encoding.num_before(tail) if tail < len(text) else len(token_ids)
        middle = array("i", token_ids[num_head:num_rest])
        num_tail = len(token_ids) - num_rest
        return Claim(text[:head], middle.tobytes(), text[tail:], num_head, num_tail)

    def _head_cut(self, text: str) -> int:
        """Returns the first safe position, or the length of the text."""
        special = self._special.search(text) if self._special else None
        end = special.start() if special else len(text)
        for position in self._candidates(text, 0, end):
            if self._is_safe(text, position):
                return position
        return end

    def _tail_cut(self, text: str) -> int:
        """Returns the last safe position, or 0."""
        start = 0
        if self._special:
            for special in self._special.finditer(text):
                start = special.end()
        for position in self._candidates(text, start, len(text), from_end=True):
            if self._is_safe(text, position):
                return position
        return start

    def _is_safe(self, text: str, position: int) -> bool:
        start = max(0, position - _WINDOW)
        window = text[start : position + _WINDOW]
        return self._tokenizer.is_boundary(window, position - start)

    def _candidates(self, text: str, start: int, end: int, from_end: bool = False) -> Iterator[int]:
        if from_end:
            # A short stretch before the end is enough to hold the last few words.
            near, position, num_found = max(start, end - 4 * _WINDOW), end, 0
            while num_found < _MAX_CANDIDATES:
                position = text.rfind(" ", near, position)
                if position < 0:
                    return
                around = text[position - 1 : position] + text[position + 1 : min(position + 2, end)]
                if len(around) == 2 and not (around[0].isspace() or around[1].isspace()):
                    num_found += 1
                    yield position
            return
        for count, match in enumerate(_SINGLE_SPACE.finditer(text, start, end)):
            if count == _MAX_CANDIDATES:
                return
            yield match.start()
