"""The invariants of a logical plan, each with its message."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence

from helium.errors import WorkflowError
from helium.plan.operators import (
    Concat,
    Data,
    Input,
    Lambda,
    Llm,
    Operator,
    Output,
    Reference,
    Sampling,
    Slice,
    Text,
)
from helium.plan.rewrite import texts
from helium.plan.text import is_canonical

MAX_NAME_LENGTH = 256
MAX_OPERATORS = 65_536


def validate(operators: Sequence[Operator], sources: Mapping[str, str]) -> None:
    """Raises ``WorkflowError`` for the first invariant that does not hold; linear in the plan."""
    if len(operators) > MAX_OPERATORS:
        raise WorkflowError(
            f"plan: {len(operators)} operators are too many, at most {MAX_OPERATORS} are planned; "
            "pass repeated work as rows of the batch"
        )
    _Validator(operators, sources).run()


def where(name: str, sources: Mapping[str, str]) -> str:
    """Returns how messages name an operator: with its source line where one is known."""
    place = sources.get(name)
    return f"operator {name!r}" if place is None else f"operator {name!r} ({place})"


def width(operator: Operator, widths: Mapping[str, int]) -> int:
    """Returns how many outputs per row the operator has, given those of what it reads."""
    match operator:
        case Llm():
            return operator.sampling.n
        case Slice() | Output():
            return widths[operator.source]
        case Concat():
            return widths[operator.sources[0]]
    return 1


class _Validator:
    def __init__(self, operators: Sequence[Operator], sources: Mapping[str, str]) -> None:
        self._operators = operators
        self._sources = sources
        self._seen: dict[str, Operator] = {}
        self._widths: dict[str, int] = {}

    def run(self) -> None:
        keys: dict[str, str] = {}
        for operator in self._operators:
            self._check_name(operator)
            self._check_reads(operator)
            self._check_fields(operator)
            for text in texts(operator):
                self._check_text(operator, text)
            self._seen[operator.name] = operator
            self._widths[operator.name] = width(operator, self._widths)
            if isinstance(operator, Output):
                if operator.key in keys:
                    raise self._error(
                        operator,
                        f"has the result key {operator.key!r}, which output "
                        f"{keys[operator.key]!r} has too; give each output its own key",
                    )
                keys[operator.key] = operator.name
        if not keys:
            raise WorkflowError(
                f"plan: none of its {len(self._operators)} operators is an output; add at least one"
            )

    def _check_name(self, operator: Operator) -> None:
        if not 1 <= len(operator.name) <= MAX_NAME_LENGTH:
            raise self._error(
                operator,
                f"has a name of {len(operator.name)} characters; use 1 to {MAX_NAME_LENGTH}",
            )
        if operator.name in self._seen:
            raise self._error(
                operator, "has the name of an earlier operator; names are unique, rename one"
            )

    def _check_reads(self, operator: Operator) -> None:
        for name in operator.reads:
            producer = self._seen.get(name)
            if producer is None:
                self._raise_missing(operator, name)
            elif isinstance(producer, Output):
                raise self._error(
                    operator,
                    f"reads {name!r}, which is an output; read its source {producer.source!r}",
                )

    def _raise_missing(self, operator: Operator, name: str) -> None:
        if name == operator.name:
            raise self._error(
                operator, "reads itself; a plan has no cycles, write the rounds of a loop out"
            )
        if any(other.name == name for other in self._operators):
            raise self._error(
                operator,
                f"reads {name!r}, which comes after it; list producers before their readers (a "
                "plan has no cycles)",
            )
        raise self._error(
            operator,
            f"reads {name!r}, which no operator produces; available: {_near(name, self._seen)}",
        )

    def _check_fields(self, operator: Operator) -> None:
        match operator:
            case Input(column=""):
                raise self._error(operator, "names no column; give the batch's column it reads")
            case Data(is_scalar=True) if len(operator.values) != 1:
                raise self._error(
                    operator,
                    f"is a scalar with {len(operator.values)} values; a scalar has exactly one",
                )
            case Lambda(function=""):
                raise self._error(operator, "names no function; give a registered name")
            case Slice(step=0):
                raise self._error(operator, "has step 0; use a positive or negative step")
            case Concat():
                self._check_concat(operator)
            case Llm():
                self._check_llm(operator)

    def _check_concat(self, operator: Concat) -> None:
        if not operator.sources:
            raise self._error(operator, "joins no operators; give at least one source")
        widths = {name: self._widths[name] for name in operator.sources}
        if len(set(widths.values())) > 1:
            raise self._error(
                operator,
                f"joins operators with different numbers of outputs per row: {widths}; they must "
                "be equal",
            )

    def _check_llm(self, operator: Llm) -> None:
        if (operator.prompt is None) == (not operator.messages):
            found = "both" if operator.messages else "neither"
            raise self._error(
                operator, f"needs either messages or a prompt, got {found}; give exactly one"
            )
        for message in operator.messages:
            if not message.role:
                raise self._error(
                    operator, "has a message without a role; use 'system', 'user' or 'assistant'"
                )
        if operator.model == "":
            raise self._error(operator, "names the model ''; leave it out for the default model")
        if operator.history is not None:
            self._check_history(operator, operator.history)
        for problem in _sampling_problems(operator.sampling):
            raise self._error(operator, f"has {problem}")

    def _check_history(self, operator: Llm, name: str) -> None:
        producer = self._seen[name]
        if not isinstance(producer, Llm) or not producer.messages:
            raise self._error(
                operator,
                f"continues the conversation of {name!r}, which is not an LLM operator with "
                "messages; name one, or pass the text in a message",
            )
        if operator.prompt is not None:
            raise self._error(
                operator,
                f"has a prompt and a history {name!r}; a conversation continues with messages",
            )
        if producer.sampling.n != 1:
            raise self._error(
                operator,
                f"continues the conversation of {name!r}, which has n={producer.sampling.n} "
                "outputs; a conversation has one, use n=1 there",
            )

    def _check_text(self, operator: Operator, text: Text) -> None:
        if not is_canonical(text):
            raise self._error(
                operator,
                "holds an empty literal or two in a row; make texts with helium.plan.text.text",
            )
        for part in text:
            if isinstance(part, Reference) and not 0 <= part.choice < self._widths[part.operator]:
                raise self._error(
                    operator,
                    f"reads choice {part.choice} of {part.operator!r}, which has "
                    f"{self._widths[part.operator]} output(s) per row; count from 0",
                )

    def _error(self, operator: Operator, problem: str) -> WorkflowError:
        return WorkflowError(f"{where(operator.name, self._sources)} {problem}")


def _near(name: str, known: Collection[str]) -> list[str]:
    return difflib.get_close_matches(name, known, n=5, cutoff=0.5) or list(known)[:10]


def _sampling_problems(s: Sampling) -> Iterator[str]:
    max_tokens = math.inf if s.max_tokens is None else s.max_tokens
    if max_tokens < 1:
        yield f"max_tokens={s.max_tokens}; use 1 or more"
    if not 0.0 <= s.temperature < math.inf:
        yield f"temperature={s.temperature}; use 0 (greedy) or a positive number"
    if not 0.0 < s.top_p <= 1.0:
        yield f"top_p={s.top_p}; use 0 < top_p <= 1"
    if s.top_k < 0:
        yield f"top_k={s.top_k}; use 0 (all) or a positive number"
    if not 0.0 <= s.min_p <= 1.0:
        yield f"min_p={s.min_p}; use 0 <= min_p <= 1"
    if not -2.0 <= s.presence_penalty <= 2.0:
        yield f"presence_penalty={s.presence_penalty}; use -2 to 2"
    if not -2.0 <= s.frequency_penalty <= 2.0:
        yield f"frequency_penalty={s.frequency_penalty}; use -2 to 2"
    if not 0.0 < s.repetition_penalty < math.inf:
        yield f"repetition_penalty={s.repetition_penalty}; use a positive number, 1 is neutral"
    if not 0 <= s.min_tokens <= max_tokens:
        yield f"min_tokens={s.min_tokens} with max_tokens={s.max_tokens}; use 0 <= min <= max"
    if not all(s.stop):
        yield "an empty stop string; leave it out"
    if s.n < 1:
        yield f"n={s.n}; use 1 or more"
    if s.n > 1 and s.temperature == 0.0:
        yield f"n={s.n} with temperature 0, whose outputs would all be equal; use n=1 or sample"
