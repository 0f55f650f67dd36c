"""The model that is not there: answers that depend on nothing but the call."""

from __future__ import annotations

import hashlib
import random
import string
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from helium.errors import ConfigError
from helium.plan.calls import Call
from vllm_helium.simulator.tokenizer import PieceTokenizer

DEFAULT_MAX_TOKENS = 512
"""Longest answer of a call that sets no limit."""

_SEED = random.Random("vocabulary")
_VOCABULARY = sorted(
    {"".join(_SEED.choices(string.ascii_lowercase, k=_SEED.randrange(2, 6))) for _ in range(4_096)}
)


class Output(NamedTuple):
    """One answer.

    Attributes:
        token_ids: What the model emits, the token that ends the turn included, int32 [num_tokens].
    """

    text: str
    token_ids: list[int]


@dataclass(frozen=True)
class OutputLengths:
    """How long answers are.

    Attributes:
        mean: Expected tokens of a call's answer; it may look at nothing but the call. ``None`` for
            as long as the call allows.
        spread: Lengths are drawn evenly from ``mean * (1 ± spread)``.
    """

    mean: Callable[[Call], float | None] = lambda call: None
    spread: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.spread < 1:
            raise ConfigError(f"spread: expected a ratio from 0 to below 1, got {self.spread}")

    def draw(self, call: Call, generator: random.Random) -> int:
        """Returns the answer's length in tokens, between the call's limits."""
        limit = call.sampling.max_tokens or DEFAULT_MAX_TOKENS
        mean = self.mean(call)
        if mean is None:
            return limit
        length = round(mean * (1 + self.spread * (2 * generator.random() - 1)))
        return min(max(length, call.sampling.min_tokens, 1), limit)


class FakeModel:
    """Answers calls with made-up words; equal deterministic calls get equal answers.

    Calls that are not deterministic get other words each time they are made.
    """

    def __init__(
        self, tokenizer: PieceTokenizer, lengths: OutputLengths | None = None, seed: int = 0
    ):
        self._tokenizer = tokenizer
        self._lengths = lengths or OutputLengths()
        self._seed = seed
        self._draws: Counter[bytes] = Counter()

    def answer(self, call: Call) -> tuple[Output, ...]:
        """Returns the call's ``n`` answers; linear in the prompt."""
        content = msgspec.json.encode((self._seed, call.messages, call.prompt, call.model))
        identity = hashlib.blake2b(content, digest_size=16).digest()
        sampling = call.sampling
        if sampling.temperature:
            identity += msgspec.json.encode((sampling.temperature, sampling.seed))
        if not sampling.is_deterministic:
            self._draws[identity] += 1
            identity += self._draws[identity].to_bytes(4, "big")
        return tuple(
            self._output(call, identity + number.to_bytes(4, "big") if number else identity)
            for number in range(sampling.n)
        )

    def _output(self, call: Call, identity: bytes) -> Output:
        generator = random.Random(identity)
        length = self._lengths.draw(call, generator)
        limit = call.sampling.max_tokens or DEFAULT_MAX_TOKENS
        is_cut = length == limit or call.sampling.ignore_eos
        words = generator.choices(_VOCABULARY, k=length if is_cut else length - 1)
        text = " ".join(words)
        token_ids = self._tokenizer.token_ids(text)
        if not is_cut:
            token_ids.append(self._tokenizer.end_of_turn)
        return Output(text, token_ids)
