"""The operators of a logical plan: frozen, typed, comparable, JSON-able values.

An operator is known by its ``name``, unique within a plan, and refers to others by name. It
produces one value per row of the batch; a ``Data`` scalar and whatever depends on scalars alone has
a single row that broadcasts (``helium.plan.rows`` has the rules). The value of a row is one string,
or a tuple of ``n`` strings where an LLM operator with ``n > 1`` made it.

Source: Helium, §6 and App. C (operator set); the value types are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import msgspec


class Reference(msgspec.Struct, frozen=True, tag="reference", forbid_unknown_fields=True):
    """The text another operator produces, in the same row.

    Attributes:
        operator: Name of the producing operator.
        choice: Which of the producer's ``n`` outputs is meant, ``0 <= choice < n``.
    """

    operator: str
    choice: int = 0


class Literal(msgspec.Struct, frozen=True, tag="literal", forbid_unknown_fields=True):
    """Static text."""

    text: str


Text = tuple[Literal | Reference, ...]
"""A string with holes. Canonical form: no empty literal, no two literals in a row."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One chat message whose content may refer to other operators."""

    role: str
    content: Text


_FLOAT_FIELDS = (
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Sampling parameters of one LLM operator, named as in the OpenAI API and vLLM.

    Attributes:
        max_tokens: Upper bound on output tokens; ``None`` leaves it to the engine.
        temperature: ``0.0`` is greedy decoding.
        seed: Makes a call with ``temperature > 0`` repeatable.
        n: Number of outputs per call.
        structured: Structured-output constraint as the engine takes it, for example
            ``{"json": {...schema...}}`` or ``{"choice": ["yes", "no"]}``.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    n: int = 1
    structured: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for field in _FLOAT_FIELDS:
            value = getattr(self, field)
            if type(value) is int:  # 0 and 0.0 must encode to the same bytes
                msgspec.structs.force_setattr(self, field, float(value))

    @property
    def is_deterministic(self) -> bool:
        """Whether equal prompts must give equal outputs (greedy or seeded)."""
        return self.temperature == 0.0 or self.seed is not None


class _Operator(
    msgspec.Struct, frozen=True, dict=True, forbid_unknown_fields=True, omit_defaults=True
):
    name: str

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """Names of the operators whose values this one needs, in order, without repeats."""
        return tuple(dict.fromkeys(self._reads()))

    def _reads(self) -> Iterator[str]:
        return iter(())


class Input(_Operator, frozen=True, tag="input"):
    """A column of the batch, bound by name when the plan is compiled."""

    column: str


class Data(_Operator, frozen=True, tag="data"):
    """A batch embedded in the plan; one value broadcasts when ``is_scalar``."""

    values: tuple[str, ...]
    is_scalar: bool = False


class Format(_Operator, frozen=True, tag="format"):
    """Text assembled from literals and other operators' values."""

    text: Text

    def _reads(self) -> Iterator[str]:
        return references(self.text)


class Lambda(_Operator, frozen=True, tag="lambda"):
    """A stateless function of the row's values, known by its registered name.

    The function gets one argument per entry of ``arguments``: a ``str``, or a ``list[str]`` where
    the producer is an LLM operator with ``n > 1``. It returns a ``str``.
    """

    function: str
    arguments: tuple[str, ...]

    def _reads(self) -> Iterator[str]:
        return iter(self.arguments)


class Llm(_Operator, frozen=True, tag="llm"):
    """One LLM call per row: either ``messages`` (chat) or ``prompt`` (completion).

    Attributes:
        history: An LLM operator whose conversation (its own history, its messages and its output)
            comes before ``messages``.
        model: Model or LoRA adapter to call; ``None`` is the engine's default.
    """

    messages: tuple[Message, ...] = ()
    prompt: Text | None = None
    history: str | None = None
    sampling: Sampling = Sampling()
    model: str | None = None

    def _reads(self) -> Iterator[str]:
        if self.history is not None:
            yield self.history
        for message in self.messages:
            yield from references(message.content)
        if self.prompt is not None:
            yield from references(self.prompt)


class Slice(_Operator, frozen=True, tag="slice"):
    """Some rows of another operator: Python's ``start:stop:step`` over its rows."""

    source: str
    start: int | None = None
    stop: int | None = None
    step: int | None = None

    def _reads(self) -> Iterator[str]:
        yield self.source


class Concat(_Operator, frozen=True, tag="concat"):
    """The rows of several operators one after another."""

    sources: tuple[str, ...]

    def _reads(self) -> Iterator[str]:
        return iter(self.sources)


class Output(_Operator, frozen=True, tag="output"):
    """A result the caller asked for.

    Attributes:
        key: Key of the result, ``name`` unless given. Keys have a namespace of their own, so a
            result may be called like the operator it returns.
    """

    source: str
    key: str = ""

    def __post_init__(self) -> None:
        if not self.key:
            msgspec.structs.force_setattr(self, "key", self.name)

    def _reads(self) -> Iterator[str]:
        yield self.source


Operator = Input | Data | Format | Lambda | Llm | Slice | Concat | Output


def references(text: Text) -> Iterator[str]:
    """Yields the operator names a text refers to, with repeats."""
    return (part.operator for part in text if isinstance(part, Reference))
