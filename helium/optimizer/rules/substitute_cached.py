"""Takes outputs that a prompt cache has already, so that only the missing rows are computed.

>>> from helium.plan.calls import Call
>>> from helium.plan.compiled_plan import bind
>>> from helium.plan.logical_plan import LogicalPlan
>>> from helium.plan.operators import Input, Llm, Message, Output, Reference, Sampling
>>> from helium.plan.text import text
>>> plan = LogicalPlan((
...     Input("q", column="q"),
...     Llm("draft", messages=(Message("user", text(Reference("q"))),)),
...     Llm("final", messages=(Message("user", text("Polish: ", Reference("draft"))),)),
...     Output("answer", source="final"),
... ))
>>> before = bind(plan, {"q": ["Why?", "How?"]})
>>> cache = DictPromptCache()
>>> cache.put(Call((("user", "Why?"),), None, Sampling(), None), ("Because.",))
>>> cache.put(Call((("user", "How?"),), None, Sampling(), None), ("Somehow.",))
>>> cache.put(Call((("user", "Polish: Somehow."),), None, Sampling(), None), ("With care.",))
>>> after = SubstituteCached(cache).apply(before)
>>> print(after.plan)
q = input q
draft = input cache:draft
final = llm user: "Polish: {draft}"
answer = output final
>>> after.columns["cache:draft"], after.known
(('Because.', 'Somehow.'), {'final': {1: ('With care.',)}})
>>> list(after.calls("final"))
[0]

An operator whose rows are all cached becomes an input; then what only it needed is unused. Values
follow: a call whose prompt is made of cached outputs is looked up as well.

Source: Helium, §4 (cache substitution; there all rows of an operator or none).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol

import msgspec

from helium.errors import CacheError
from helium.plan.calls import Call
from helium.plan.compiled_plan import CompiledPlan
from helium.plan.logical_plan import LogicalPlan
from helium.plan.operators import (
    Concat,
    Data,
    Format,
    Input,
    Llm,
    Operator,
    Output,
    Reference,
    Slice,
    Text,
)

Value = str | tuple[str, ...]
Messages = tuple[tuple[str, str], ...]


class PromptCache(Protocol):
    """Outputs of earlier deterministic calls, as the planner sees it.

    The tenant, the model's revision and the tokenizer are the cache's business.
    """

    def get_many(self, calls: Sequence[Call]) -> Sequence[tuple[str, ...] | None]:
        """Returns the ``n`` outputs of each call, or ``None`` where the cache has none."""


class DictPromptCache:
    """A prompt cache in memory, without a bound: for tests and single runs."""

    def __init__(self) -> None:
        self._outputs: dict[Hashable, tuple[str, ...]] = {}

    def put(self, call: Call, outputs: tuple[str, ...]) -> None:
        """Stores the outputs of a deterministic call."""
        self._outputs[msgspec.json.encode(call)] = outputs

    def get_many(self, calls: Sequence[Call]) -> list[tuple[str, ...] | None]:
        """Returns the outputs of each call, or ``None``."""
        return [self._outputs.get(msgspec.json.encode(call)) for call in calls]


class SubstituteCached:
    """One forward pass over values known while planning; see the module.

    One lookup per LLM operator that has a complete prompt in any row. Functions are not run, so
    nothing behind a function is looked up here; the runtime asks the cache again before each call.
    """

    def __init__(self, cache: PromptCache) -> None:
        """Uses the cache, which belongs to the tenant of the plan."""
        self._cache = cache

    def apply(self, compiled: CompiledPlan) -> CompiledPlan:
        """Returns the binding with cached operators replaced and cached rows known.

        Raises:
            CacheError: The cache answered with another number of results or outputs than asked for.
        """
        known = _Lookup(compiled, self._cache).run()
        if known == compiled.known:
            return compiled
        replaced = _complete(compiled, known)
        columns = dict(compiled.columns)
        operators: list[Operator] = []
        for operator in compiled.plan.operators:
            if operator.name in replaced:
                column = _free_column(operator.name, columns)
                columns[column] = _column(compiled, operator.name, known[operator.name])
                operator = Input(operator.name, column=column)
            operators.append(operator)
        plan = LogicalPlan(tuple(operators)) if replaced else compiled.plan
        return CompiledPlan(
            plan,
            {column: columns[column] for column in plan.columns},
            {name: rows for name, rows in known.items() if name not in replaced},
            {n: rows for n, rows in compiled.representatives.items() if n not in replaced},
        )


def _complete(compiled: CompiledPlan, known: dict[str, dict[int, tuple[str, ...]]]) -> set[str]:
    """Returns the operators that an input can stand for.

    Not those with several outputs per row, nor the history of a call still to be made: its messages
    are needed, too.
    """
    replaced: set[str] = set()
    histories: set[str] = set()
    for operator in reversed(compiled.plan.operators):
        if not isinstance(operator, Llm):
            continue
        rows = _representatives(compiled, operator.name)
        found = known.get(operator.name)
        is_known = found is not None and all(row in found for row in rows)
        if is_known and operator.sampling.n == 1 and operator.name not in histories:
            replaced.add(operator.name)
        elif operator.history is not None:
            histories.add(operator.history)
    return replaced


def _representatives(compiled: CompiledPlan, name: str) -> Sequence[int]:
    return compiled.representatives.get(name) or range(compiled.rows.num_rows(name))


def _column(
    compiled: CompiledPlan, name: str, known: dict[int, tuple[str, ...]]
) -> str | tuple[str, ...]:
    if compiled.rows.is_scalar(name):
        return known[0][0]
    return tuple(known[row][0] for row in _representatives(compiled, name))


def _free_column(name: str, columns: dict[str, str | tuple[str, ...]]) -> str:
    column = f"cache:{name}"
    while column in columns:
        column += "'"
    return column


class _Lookup:
    def __init__(self, compiled: CompiledPlan, cache: PromptCache) -> None:
        self._compiled = compiled
        self._cache = cache
        self._known = {name: dict(rows) for name, rows in compiled.known.items()}
        # Row -> value or None; an operator without any known row is left out.
        self._values: dict[str, list[Value | None]] = {}
        self._conversations: dict[str, list[Messages | None]] = {}

    def run(self) -> dict[str, dict[int, tuple[str, ...]]]:
        for operator in self._compiled.plan.operators:
            values = self._evaluate(operator)
            if any(value is not None for value in values):
                self._values[operator.name] = values
        return self._known

    def _evaluate(self, operator: Operator) -> list[Value | None]:
        rows = range(self._compiled.rows.num_rows(operator.name))
        match operator:
            case Input() | Data():
                return [self._compiled.value(operator, row) for row in rows]
            case Slice() | Concat():
                sources = [self._compiled.rows.dependencies(operator.name, row) for row in rows]
                return [self._value(name, row) for ((name, row),) in sources]
            case Output():
                return []
            case Format() if self._has_values(operator):
                return [self._fill(operator.text, row) for row in rows]
            case Llm() if operator.sampling.is_deterministic and self._has_values(operator):
                return self._look_up(operator)
        return []

    def _has_values(self, operator: Operator) -> bool:
        return all(name in self._values for name in operator.reads)

    def _value(self, name: str, row: int) -> Value | None:
        values = self._values.get(name)
        return None if values is None else values[row]

    def _row_wise(self, name: str, row: int) -> Value | None:
        return self._value(name, 0 if self._compiled.rows.is_scalar(name) else row)

    def _fill(self, text: Text, row: int) -> str | None:
        parts = []
        for part in text:
            if isinstance(part, Reference):
                value = self._row_wise(part.operator, row)
                if value is None:
                    return None
                parts.append(value if isinstance(value, str) else value[part.choice])
            else:
                parts.append(part.text)
        return "".join(parts)

    def _look_up(self, operator: Llm) -> list[Value | None]:
        name = operator.name
        rows = _representatives(self._compiled, name)
        known = self._known.get(name, {})
        calls: dict[int, Call] = {}
        self._conversations[name] = [None] * self._compiled.rows.num_rows(name)
        for row in range(len(rows)):
            call = self._call(operator, row)
            if call is not None:
                self._conversations[name][row] = call.messages
                if rows[row] == row and row not in known:
                    calls[row] = call
        for row, outputs in zip(calls, self._ask(operator, list(calls.values())), strict=True):
            if outputs is not None:
                known[row] = outputs
        if known:
            self._known[name] = known
        values = [known.get(row) for row in rows]
        if operator.sampling.n > 1:
            return list(values)
        return [None if outputs is None else outputs[0] for outputs in values]

    def _call(self, operator: Llm, row: int) -> Call | None:
        messages: list[tuple[str, str]] = []
        if operator.history is not None:
            history_row = 0 if self._compiled.rows.is_scalar(operator.history) else row
            earlier = self._conversations[operator.history][history_row]
            reply = self._value(operator.history, history_row)
            if earlier is None or not isinstance(reply, str):
                return None
            messages += [*earlier, ("assistant", reply)]
        for message in operator.messages:
            content = self._fill(message.content, row)
            if content is None:
                return None
            messages.append((message.role, content))
        prompt = None
        if operator.prompt is not None:
            prompt = self._fill(operator.prompt, row)
            if prompt is None:
                return None
        return Call(tuple(messages), prompt, operator.sampling, operator.model)

    def _ask(self, operator: Llm, calls: list[Call]) -> Sequence[tuple[str, ...] | None]:
        if not calls:
            return []
        answers = self._cache.get_many(calls)
        if len(answers) != len(calls):
            raise CacheError(
                f"operator {operator.name!r}: the prompt cache was asked for {len(calls)} calls "
                f"and answered {len(answers)}; get_many returns one entry per call"
            )
        for outputs in answers:
            if outputs is not None and len(outputs) != operator.sampling.n:
                raise CacheError(
                    f"operator {operator.name!r}: the prompt cache answered {len(outputs)} "
                    f"output(s) for a call with n={operator.sampling.n}; its key must cover "
                    "the sampling parameters"
                )
        return answers
