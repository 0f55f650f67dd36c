"""What the planner needs to know of a tokenizer: rendering, encoding and safe cuts."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, count, repeat
from operator import add
from typing import Any, NamedTuple, Protocol, overload
from zlib import crc32

from helium.errors import ConfigError, PlanError

_FILLERS = (
    *("a", "ing", "B", "é", "中", "\u0301", "_"),
    *("7", "42", "777", "0000"),
    *(".", ",", "-", "'s", "(", '"', "…"),
    *(" ", "   ", "\n", "\n\n", " \n ", "\t", "\r\n"),
    *(" a", "a ", " 7", "7 ", ".\n", "\n.", "</", ">"),
)
"""Neighbours a cut must survive: one of every class that pre-tokenizers tell apart, and mixes."""


_MAX_REMEMBERED = 16_384
"""Probed cuts that are remembered, some hundred bytes each."""


class Encoding(NamedTuple):
    """Tokens of a text.

    Attributes:
        token_ids: int32 [num_tokens].
        starts: Character at which each token starts, non-decreasing, [num_tokens].
    """

    token_ids: Sequence[int]
    starts: Sequence[int]

    def num_before(self, position: int) -> int:
        """Returns how many tokens start before a character."""
        if isinstance(self.starts, _Starts):
            return self.starts.num_before(position)
        return bisect_left(self.starts, position)


class PromptTokenizer(Protocol):
    """Turns messages into text and text into tokens; must be deterministic.

    ``TransformersTokenizer`` wraps a Hugging Face tokenizer, ``WordTokenizer`` needs nothing.
    """

    def render_chat(self, messages: Sequence[Mapping[str, str]], add_reply: bool) -> str:
        """Returns the prompt text of a chat.

        Args:
            messages: Each with ``role`` and ``content``.
            add_reply: Whether to open the assistant's turn at the end.
        """
        ...

    def render_completion(self, text: str) -> str:
        """Returns the prompt text of a completion: ``text`` with what goes before any prompt."""
        ...

    def encode(self, text: str) -> Encoding:
        """Tokenizes ``text`` as it is, adding nothing."""
        ...

    def special_tokens(self) -> tuple[str, ...]:
        """Returns the texts that always are a token of their own, whatever is beside them."""
        ...

    def is_boundary(self, text: str, position: int) -> bool:
        """Whether no text put before or after ``text`` can change tokens across ``position``.

        That is: the tokens before ``position`` do not depend on what follows ``text``, and those
        after it do not depend on what precedes ``text``. May answer False when in doubt.
        """
        ...


class _WordIds(dict[str, int]):
    """Token id of a word, with what always comes before it: its hash, int32, remembered."""

    def __init__(self, before: str = "") -> None:
        super().__init__()
        self._before = before

    def __missing__(self, word: str) -> int:
        found = self[word] = crc32((self._before + word).encode()) >> 1
        return found


class _Starts(Sequence[int]):
    """Where words start, found when first asked for: most texts are only counted.

    Args:
        stretches: Of the text: its first character, its words, and whether a space that is part of
            the token comes before each of them but the first.
    """

    __slots__ = ("_found", "_stretches")

    def __init__(self, stretches: list[tuple[int, list[str], bool]]) -> None:
        self._stretches = stretches
        self._found: list[int] | None = None

    def __len__(self) -> int:
        return len(self._starts())

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        return self._starts()[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._starts())

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def num_before(self, position: int) -> int:
        """Returns how many are before a character; near the end, without finding them all."""
        if self._found is not None:
            return bisect_left(self._found, position)
        num_before = sum(len(words) for _, words, _ in self._stretches)
        for start, words, is_spaced in reversed(self._stretches):
            if start >= position:
                num_before -= len(words)
                continue
            begin = start + sum(map(len, words)) + is_spaced * (len(words) - 1)
            for word in reversed(words):  # the first one, wrongly taken as spaced, starts before
                begin -= len(word) + is_spaced
                if begin < position:
                    return num_before
                num_before -= 1
        return num_before

    def _starts(self) -> list[int]:
        if self._found is None:
            self._found = []
            for start, words, is_spaced in self._stretches:
                self._found.append(start)
                lengths = accumulate(map(len, words[:-1]))
                self._found += map(add, lengths, count(start) if is_spaced else repeat(start))
            self._stretches = []
        return self._found


class WordTokenizer:
    """One token per word, with the white space before it; ids are hashes, chat is ChatML.

    For tests, planning benchmarks and planning without a model at hand. Ids agree between
    processes. Token counts are about three quarters of a real tokenizer's for English.
    """

    _SPECIAL = re.compile(r"<\|[a-z_]+\|>")
    _WORD = re.compile(r"\s*\S+|\s+")

    def __init__(self) -> None:
        self._ids = _WordIds()
        self._spaced_ids = _WordIds(" ")

    def render_chat(self, messages: Sequence[Mapping[str, str]], add_reply: bool) -> str:
        turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages]
        if add_reply:
            turns.append("<|im_start|>assistant\n")
        return "".join(turns)

    def render_completion(self, text: str) -> str:
        return text

    def encode(self, text: str) -> Encoding:
        token_ids = array("i")
        stretches: list[tuple[int, list[str], bool]] = []
        position = 0
        for special in self._SPECIAL.finditer(text):
            start, stop = special.span()
            self._encode_words(text[position:start], position, token_ids, stretches)
            token_ids.append(self._ids[special[0]])
            stretches.append((start, [special[0]], False))
            position = stop
        self._encode_words(text[position:] if position else text, position, token_ids, stretches)
        return Encoding(token_ids, _Starts(stretches))

    def special_tokens(self) -> tuple[str, ...]:
        return ("<|im_start|>", "<|im_end|>")

    def is_boundary(self, text: str, position: int) -> bool:
        # A word takes the white space before it, so it ends for sure where white space begins.
        return 0 < position < len(text) and text[position].isspace() != text[position - 1].isspace()

    def _encode_words(
        self,
        text: str,
        start: int,
        token_ids: array[int],
        stretches: list[tuple[int, list[str], bool]],
    ) -> None:
        """Adds the tokens and stretches of a text without special tokens."""
        if not text:
            return
        body = text.rstrip()
        lines = body.split("\n")
        split = [line.split() for line in lines]
        for number, words in enumerate(split):
            if (number and not words) or " ".join(words) != lines[number]:
                words = self._WORD.findall(text)  # they leave no gaps
                token_ids.fromlist(list(map(self._ids.__getitem__, words)))
                stretches.append((start, words, False))
                return
        # Single spaces and single ends of lines, the usual case, go without a regular expression.
        end = start + len(body)
        for number, words in enumerate(split):
            if not words:
                continue
            if number:
                words[0] = f"\n{words[0]}"
            token_ids.append(self._ids[words[0]])
            if len(words) > 1:
                token_ids.fromlist(list(map(self._spaced_ids.__getitem__, words[1:])))
            stretches.append((start, words, True))
            start += len(lines[number]) + (number > 0)
        rest = text[len(body) :]
        if rest:
            token_ids.append(self._ids[rest])
            stretches.append((end, [rest], True))


class TransformersTokenizer:
    """Wraps a fast Hugging Face tokenizer, passed in by the caller; this module imports none.

    Cuts are verified by probing: a position counts as a boundary when the tokens on its far side
    stay the same for each of some thirty neighbouring texts that cover the character classes of
    the usual pre-tokenizers.
    """

    def __init__(self, tokenizer: Any, chat_template_kwargs: Mapping[str, Any] | None = None):
        """Wraps ``tokenizer``.

        Args:
            chat_template_kwargs: What the server passes to its chat template, for example
                ``{"enable_thinking": False}``; it must be the same here and there.

        Raises:
            ConfigError: The tokenizer is not a fast one, so that it has no character offsets.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigError(
                f"tokenizer: expected a fast tokenizer (with character offsets), got "
                f"{type(tokenizer).__name__}; load it with use_fast=True"
            )
        self._tokenizer = tokenizer
        self._kwargs = dict(chat_template_kwargs or {})
        added = sorted(tokenizer.added_tokens_decoder.items())
        self._special = tuple(
            token.content for _, token in added if not token.single_word and token.content
        )
        # Probing is the slow part of planning, and workflows are planned again and again.
        self._stable: dict[tuple[str, int], bool] = {}
        self._completion_prefix = self._find_completion_prefix()

    def render_chat(self, messages: Sequence[Mapping[str, str]], add_reply: bool) -> str:
        """See ``PromptTokenizer``.

        Raises:
            PlanError: The chat template refuses these messages, or there is no template.
        """
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=add_reply,
                **self._kwargs,
            )
        except Exception as error:  # a template is a program of the model's author
            roles = [message["role"] for message in messages]
            raise PlanError(
                f"chat template: cannot render messages with roles {roles}: {error}; use roles "
                "and an order the model's template takes"
            ) from error
        return str(text)

    def render_completion(self, text: str) -> str:
        return self._completion_prefix + text

    def encode(self, text: str) -> Encoding:
        return self._encode_batch([text])[0]

    def special_tokens(self) -> tuple[str, ...]:
        return self._special

    def is_boundary(self, text: str, position: int) -> bool:
        # Inside a word, only a vocabulary could tell: probing is trusted where white space begins.
        if not 0 < position < len(text) or not text[position].isspace():
            return False
        return not text[position - 1].isspace() and self._is_stable(text, position)

    def _is_stable(self, text: str, position: int) -> bool:
        key = (text, position)
        is_stable = self._stable.get(key)
        if is_stable is None:
            is_stable = probe_boundary(self._encode_batch, text, position)
            if len(self._stable) >= _MAX_REMEMBERED:
                self._stable.clear()
            self._stable[key] = is_stable
        return is_stable

    def _encode_batch(self, texts: list[str]) -> list[Encoding]:
        encoded = self._tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return [Encoding(ids, [start for start, _ in offsets]) for ids, offsets in pairs]

    def _find_completion_prefix(self) -> str:
        token_ids = self._tokenizer("x", add_special_tokens=True)["input_ids"]
        bos = getattr(self._tokenizer, "bos_token_id", None)
        has_bos = bos is not None and token_ids[:1] == [bos]
        return str(self._tokenizer.bos_token) if has_bos else ""


def probe_boundary(
    encode_batch: Callable[[list[str]], Sequence[Encoding]], text: str, position: int
) -> bool:
    """Whether ``position`` of ``text`` stays a token boundary beside every filler text.

    Fillers are put before the text, to look at the tokens from ``position`` on, and after it, to
    look at those up to ``position``. Costs one batch of two tokenizations of ``text`` per filler.
    """
    before = [filler + text for filler in _FILLERS]
    after = [text + filler for filler in _FILLERS]
    alone, *encodings = encode_batch([text, *before, *after])
    right = _tokens_from(alone, position, 0)
    left = _tokens_before(alone, position)
    reach = right[0][1] if right else len(text) - position
    if reach > 1 and not text[position : position + reach].isspace():
        return False  # a token of the left side reaches over the cut
    num = len(_FILLERS)
    return all(
        _tokens_from(encoding, position, len(filler)) == right
        for filler, encoding in zip(_FILLERS, encodings[:num], strict=True)
    ) and all(_tokens_before(encoding, position) == left for encoding in encodings[num:])


def _tokens_from(encoding: Encoding, position: int, shift: int) -> list[tuple[int, int]]:
    cut = position + shift
    pairs = zip(encoding.token_ids, encoding.starts, strict=True)
    return [(token, start - cut) for token, start in pairs if start >= cut]


def _tokens_before(encoding: Encoding, cut: int) -> list[tuple[int, int]]:
    pairs = zip(encoding.token_ids, encoding.starts, strict=True)
    return [(token, start) for token, start in pairs if start < cut]
