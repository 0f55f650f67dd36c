"""From LLM operators to templates: static tokens and the values between them.

A template is the prompt of an operator with the values of a row left open. Formats are inlined,
scalars are static text, and a continued conversation starts with the template it continues and the
reply that was generated there.

Source: Helium, §5 and App. A; tokens instead of text, and the treatment of joins, are ours.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

from helium.plan.compiled_plan import CompiledPlan
from helium.plan.operators import (
    Data,
    Format,
    Input,
    Llm,
    Message,
    Reference,
    Text,
)
from helium.templates.joins import JoinFinder
from helium.templates.tokenizer import PromptTokenizer

MAX_RUNS = 1_000
"""Longest template in runs; what is beyond becomes one run, as the engine's message is bounded."""


class Value(NamedTuple):
    """A value a prompt reads.

    Attributes:
        label: Its identity: operators that read the same value of their row have equal labels.
        operator: Who produces it.
        is_shared: Whether all rows read the same value (a scalar).
    """

    label: str
    operator: str
    is_shared: bool


class VariableRun(NamedTuple):
    """Part of a prompt whose tokens are unknown until the row is.

    Attributes:
        label: Its identity; equal labels give equal tokens in the same row after the same prefix.
        value: What it reads; ``None`` for static text whose tokens depend on its neighbour.
        num_join_tokens: Tokens of the static text in it, about.
    """

    label: str
    value: Value | None
    num_join_tokens: int

    @property
    def is_shared(self) -> bool:
        """Whether this run adds no dependence on the row."""
        return self.value is None or self.value.is_shared


Run = bytes | VariableRun
"""Static tokens (int32, native byte order) or a value."""

Template = tuple[Run, ...]

_Pieces = tuple[str | Value, ...]
_Render = Callable[[Sequence[str]], str]


def token_ids(run: bytes) -> array[int]:
    """Returns the tokens of a static run, int32 [num_tokens]."""
    tokens = array("i")
    tokens.frombytes(run)
    return tokens


class TemplateRenderer:
    """Renders the templates of a bound plan's LLM operators.

    Cost of one template: its static text, and the messages of its conversation. Remembers static
    texts, and the templates that conversations continue.
    """

    def __init__(self, compiled: CompiledPlan, tokenizer: PromptTokenizer) -> None:
        self._compiled = compiled
        self._by_name = compiled.plan.by_name
        self._tokenizer = tokenizer
        self._joins = JoinFinder(tokenizer)
        self._values: dict[Reference, _Pieces] = {}
        self._histories = {operator.history for operator in compiled.plan.llm_operators}
        self._rendered: dict[str, tuple[_Pieces, Template]] = {}

    def template(self, operator: Llm) -> Template:
        """Returns the operator's template.

        Raises:
            PlanError: The model's chat template refuses the operator's messages.
        """
        # Render a long conversation from its start, not by recursion from its end.
        turns = [operator]
        while turns[-1].history is not None and turns[-1].history not in self._rendered:
            turn = self._by_name[turns[-1].history]
            assert isinstance(turn, Llm), f"{turn.name!r} is a history, but no LLM operator"
            turns.append(turn)
        for turn in reversed(turns):
            rendered = self._rendered.get(turn.name) or self._render(turn)
            if turn.name in self._histories:
                self._rendered[turn.name] = rendered
        return rendered[1]

    def _render(self, operator: Llm) -> tuple[_Pieces, Template]:
        if operator.prompt is not None:
            pieces = self._render_marked([operator.prompt], self._completion)
        else:
            conversation = self._compiled.plan.conversation(operator.name)
            contents = [message.content for message in conversation]
            pieces = self._render_marked(contents, lambda texts: self._chat(conversation, texts))
        runs = self._continue(operator, pieces)
        if runs is None:
            runs = self._runs(pieces, is_open_left=False)
            if operator.model is not None:  # nothing is shared across models
                runs.insert(0, VariableRun(f"model:{operator.model}", None, 0))
        if len(runs) > MAX_RUNS:
            rest = VariableRun(f"rest:{operator.name}", None, 0)
            runs = [*runs[: MAX_RUNS - 1], rest]
        return pieces, tuple(runs)

    def _continue(self, operator: Llm, pieces: _Pieces) -> list[Run] | None:
        """Returns the runs that extend the history's prompt, if the chat template does so."""
        if operator.history is None:
            return None
        history = self._by_name[operator.history]
        assert isinstance(history, Llm)
        previous, runs = self._rendered[history.name]
        reply = self._value(Reference(history.name))
        n = len(previous)
        if pieces[: n + 1] != previous + reply or history.model != operator.model:
            return None
        (value,) = reply
        assert isinstance(value, Value)
        rest = self._runs(pieces[n + 1 :], is_open_left=True)
        return [*runs, VariableRun(value.label, value, 0), *rest]

    def _chat(self, conversation: Sequence[Message], texts: Sequence[str]) -> str:
        messages = [
            {"role": message.role, "content": text}
            for message, text in zip(conversation, texts, strict=True)
        ]
        return self._tokenizer.render_chat(messages, add_reply=True)

    def _completion(self, texts: Sequence[str]) -> str:
        return self._tokenizer.render_completion(texts[0])

    def _render_marked(self, contents: Sequence[Text], render: _Render) -> _Pieces:
        """Renders texts with a mark in the place of each value, then cuts at the marks."""
        resolved = [self._resolve(content) for content in contents]
        values = list(dict.fromkeys(p for text in resolved for p in text if isinstance(p, Value)))
        static = {p for text in resolved for p in text if isinstance(p, str)}
        opening = _unused_mark(static)
        marks = {value: f"{opening}{index}{opening}" for index, value in enumerate(values)}
        rendered = render(
            ["".join([p if isinstance(p, str) else marks[p] for p in text]) for text in resolved]
        )
        pieces: list[str | Value] = []
        for index, part in enumerate(re.split(f"{opening}(\\d+){opening}", rendered)):
            if index % 2:
                pieces.append(values[int(part)])
            elif part:
                pieces.append(part)
        return tuple(pieces)

    def _resolve(self, text: Text) -> _Pieces:
        parts: list[str | Value] = []
        for part in text:
            if isinstance(part, Reference):
                parts.extend(self._value(part))
            else:
                parts.append(part.text)
        return tuple(parts)

    def _value(self, reference: Reference) -> _Pieces:
        pieces = self._values.get(reference)
        if pieces is None:
            pieces = self._values[reference] = self._resolve_value(reference)
        return pieces

    def _resolve_value(self, reference: Reference) -> _Pieces:
        operator = self._by_name[reference.operator]
        is_shared = self._compiled.rows.is_scalar(operator.name)
        label = f"value:{operator.name}"
        match operator:
            case Format():
                return self._resolve(operator.text)
            case Data() | Input() if is_shared:
                return (self._compiled.value(operator, 0),)
            case Input():
                label = f"column:{operator.column}"
            case Llm():
                label = f"output:{operator.name}"
        if reference.choice:
            label += f"#{reference.choice}"
        return (Value(label, operator.name, is_shared),)

    def _runs(self, pieces: Sequence[str | Value], is_open_left: bool) -> list[Run]:
        runs: list[Run] = []
        lead, num_lead = "", 0
        for index, piece in enumerate(pieces):
            if isinstance(piece, Value):
                label = f"{lead}\0{piece.label}" if lead else piece.label
                runs.append(VariableRun(label, piece, num_lead))
                lead, num_lead, is_open_left = "", 0, True
                continue
            is_last = index + 1 == len(pieces)
            claim = self._joins.claim(piece, is_open_left, not is_last)
            if claim.head:
                runs.append(VariableRun(f"join:{claim.head}", None, claim.num_head_tokens))
            if claim.token_ids:
                runs.append(claim.token_ids)
            lead, num_lead = claim.tail, claim.num_tail_tokens
        if lead:
            runs.append(VariableRun(f"join:{lead}", None, num_lead))
        return runs


def _unused_mark(texts: set[str]) -> str:
    """Returns a private-use character that no text holds."""
    for code in range(0xE000, 0xF8FF):
        mark = chr(code)
        if not any(mark in text for text in texts):
            return mark
    raise AssertionError("a workflow's static text uses every private-use character")
