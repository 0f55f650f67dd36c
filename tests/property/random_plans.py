"""Random plans with batches, and a deterministic stand-in for a model."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field

import msgspec

from helium.plan.calls import Call
from helium.plan.logical_plan import LogicalPlan
from helium.plan.operators import (
    Concat,
    Data,
    Format,
    Input,
    Lambda,
    Llm,
    Message,
    Operator,
    Output,
    Reference,
    Sampling,
    Slice,
    Text,
)
from helium.plan.rewrite import renamed, replace_reads
from helium.plan.text import text

FUNCTIONS = {
    "shout": lambda *values: "+".join(map(str, values)).upper(),
    "count": lambda *values: str(sum(len(value) for value in values)),
}
_WORDS = ("", "a", "b", "Why?", "{x}", "é\n")
_SAMPLINGS = (
    Sampling(),
    Sampling(),
    Sampling(max_tokens=5),
    Sampling(stop=("x",)),
    Sampling(seed=3),
    Sampling(top_p=0.5),
    Sampling(structured={"choice": ["yes", "no"]}),
    Sampling(structured={"choice": ["no", "yes"]}),
    Sampling(temperature=1.0),
    Sampling(temperature=1.0, seed=3),
    Sampling(temperature=1.0, seed=4),
    Sampling(temperature=0.5, seed=3),
    Sampling(temperature=1.0, n=2),
    Sampling(temperature=1.0, seed=3, n=2),
    Sampling(temperature=1.0, seed=3, n=3),
)


@dataclass
class RandomPlan:
    """A valid plan and a batch that fits it."""

    plan: LogicalPlan
    batch: dict[str, str | list[str]]


def random_plan(seed: int, num_operators: int) -> RandomPlan:
    """Returns the plan of a seed; with a larger ``num_operators`` it begins with the same ones."""
    return _Builder(seed).build(num_operators)


@dataclass
class _Builder:
    seed: int
    operators: list[Operator] = field(default_factory=list)
    rows: dict[str, int | None] = field(default_factory=dict)  # None: scalar
    widths: dict[str, int] = field(default_factory=dict)

    def build(self, num_operators: int) -> RandomPlan:
        self.rng = random.Random(f"{self.seed}/batch")
        sizes = {"x": self.rng.randrange(7), "y": 0, "z": self.rng.randrange(4)}
        sizes["y"] = sizes["x"]
        batch: dict[str, str | list[str]] = {
            column: [self.rng.choice(_WORDS[2:5]) for _ in range(size)]
            for column, size in sizes.items()
        }
        if self.rng.random() < 0.2:
            batch["y"] = "scalar"
        self._add(Data("tone", values=("brief",), is_scalar=True), None)
        for column, values in batch.items():
            rows = None if isinstance(values, str) else len(values)
            self._add(Input(f"in_{column}", column=column), rows)
        for index in range(num_operators):
            # A generator per operator: shrinking the number keeps the others.
            self.rng = random.Random(f"{self.seed}/{index}")
            self._random_operator(f"op{index}")
        self.rng = random.Random(f"{self.seed}/outputs")
        read = {name for operator in self.operators for name in operator.reads}
        sinks = [op.name for op in self.operators if isinstance(op, Llm) and op.name not in read]
        names = [operator.name for operator in self.operators]
        sources = [*self.rng.sample(sinks, min(len(sinks), 6)), *self.rng.sample(names, 2)]
        for number, name in enumerate(sources):
            self.operators.append(Output(f"out{number}", source=name))
        used = {operator.column for operator in self.operators if isinstance(operator, Input)}
        plan = LogicalPlan(tuple(self.operators))
        plan.validate()
        return RandomPlan(plan, {column: batch[column] for column in batch if column in used})

    def _add(self, operator: Operator, rows: int | None, width: int = 1) -> None:
        self.operators.append(operator)
        self.rows[operator.name] = rows
        self.widths[operator.name] = width

    def _random_operator(self, name: str) -> None:
        makers = {
            self._clone: 6,
            self._near_twin: 6,
            self._llm: 8,
            self._format: 4,
            self._lambda: 2,
            self._slice: 2,
            self._concat: 2,
            self._data: 1,
        }
        (make,) = self.rng.choices(list(makers), list(makers.values()))
        make(name)

    def _clone(self, name: str) -> None:
        """The same operator again, sometimes over clones of its operands."""
        operator = self.rng.choice(self.operators)
        twins = {
            read: self.rng.choice(
                [
                    other.name
                    for other in self.operators
                    if type(other) is type(self._by_name(read))
                    and self.rows[other.name] == self.rows[read]
                    and self.widths[other.name] == self.widths[read]
                    and not (isinstance(other, Llm) and not other.messages)
                ]
                or [read]
            )
            for read in operator.reads
            if self.rng.random() < 0.3
        }
        clone = renamed(replace_reads(operator, twins), name)
        self._add(clone, self.rows[operator.name], self.widths[operator.name])

    def _near_twin(self, name: str) -> None:
        """An earlier LLM operator again, with one field changed."""
        calls = [operator for operator in self.operators if isinstance(operator, Llm)]
        if not calls:
            self._llm(name)
            return
        twin = renamed(self.rng.choice(calls), name)
        assert isinstance(twin, Llm)
        rows = self._rows_of(twin.reads)
        change = self.rng.choice(("model", "history", "n", "sampling", "structured"))
        sampling = twin.sampling
        if change == "model":
            twin = msgspec.structs.replace(twin, model=self.rng.choice((None, "adapter")))
        elif change == "history" and twin.messages:
            chats = [n for n in self.rows if self._is_chat(n) and self.rows[n] in (rows, None)]
            twin = msgspec.structs.replace(twin, history=self.rng.choice([*chats, None]))
        elif change == "n" and sampling.temperature > 0:
            twin = msgspec.structs.replace(
                twin, sampling=msgspec.structs.replace(sampling, n=sampling.n + 1)
            )
        elif change == "sampling":
            twin = msgspec.structs.replace(twin, sampling=self.rng.choice(_SAMPLINGS))
        elif change == "structured":
            choice = self.rng.choice((["yes", "no"], ["no", "yes"]))
            structured = {"choice": choice}
            twin = msgspec.structs.replace(
                twin, sampling=msgspec.structs.replace(sampling, structured=structured)
            )
        self._add(twin, self._rows_of(twin.reads), twin.sampling.n)

    def _by_name(self, name: str) -> Operator:
        return next(operator for operator in self.operators if operator.name == name)

    def _compatible(self) -> tuple[list[str], int | None]:
        """Operators that may be read together, recent ones preferred, and their rows."""
        names = [operator.name for operator in self.operators]
        rows = self.rows[self.rng.choice(names[-6:])]
        return [name for name in names if self.rows[name] in (rows, None)], rows

    def _rows_of(self, reads: tuple[str, ...]) -> int | None:
        return next((self.rows[name] for name in reads if self.rows[name] is not None), None)

    def _text(self, names: list[str]) -> Text:
        parts: list[str | Reference] = []
        for _ in range(self.rng.randrange(4)):
            if self.rng.random() < 0.6:
                name = self.rng.choice(names)
                parts.append(Reference(name, self.rng.randrange(self.widths[name])))
            else:
                parts.append(self.rng.choice(_WORDS))
        return text(*parts)

    def _format(self, name: str) -> None:
        operator = Format(name, text=self._text(self._compatible()[0]))
        self._add(operator, self._rows_of(operator.reads))

    def _llm(self, name: str) -> None:
        names, _ = self._compatible()
        sampling = self.rng.choice(_SAMPLINGS)
        model = self.rng.choice((None, None, None, "adapter"))
        chats = [n for n in names if self._is_chat(n)]
        if self.rng.random() < 0.15:
            operator = Llm(name, prompt=self._text(names), sampling=sampling, model=model)
        else:
            history = self.rng.choice(chats) if chats and self.rng.random() < 0.4 else None
            roles = self.rng.choice((("user",), ("system", "user")))
            messages = tuple(Message(role, self._text(names)) for role in roles)
            operator = Llm(name, messages=messages, history=history, sampling=sampling, model=model)
        self._add(operator, self._rows_of(operator.reads), sampling.n)

    def _is_chat(self, name: str) -> bool:
        operator = self._by_name(name)
        return isinstance(operator, Llm) and bool(operator.messages) and self.widths[name] == 1

    def _lambda(self, name: str) -> None:
        names, _ = self._compatible()
        arguments = tuple(self.rng.choice(names) for _ in range(self.rng.randrange(1, 3)))
        operator = Lambda(name, function=self.rng.choice(list(FUNCTIONS)), arguments=arguments)
        self._add(operator, self._rows_of(operator.reads))

    def _slice(self, name: str) -> None:
        source = self.rng.choice(self.operators).name
        start, stop = (self.rng.choice((None, 0, 1, 2, -1)) for _ in range(2))
        step = self.rng.choice((None, 1, 2, -1))
        rows = self.rows[source]
        num_rows = len(range(1 if rows is None else rows)[start:stop:step])
        operator = Slice(name, source=source, start=start, stop=stop, step=step)
        self._add(operator, num_rows, self.widths[source])

    def _concat(self, name: str) -> None:
        width = self.widths[self.rng.choice(self.operators).name]
        names = [n for n in self.rows if self.widths[n] == width]
        sources = tuple(self.rng.choice(names) for _ in range(self.rng.randrange(1, 4)))
        num_rows = 0
        for source in sources:
            rows = self.rows[source]
            num_rows += 1 if rows is None else rows
        self._add(Concat(name, sources=sources), num_rows, width)

    def _data(self, name: str) -> None:
        rows = self.rng.choice((None, 0, 2, 3))
        values = tuple(self.rng.choice(_WORDS) for _ in range(1 if rows is None else rows))
        self._add(Data(name, values=values, is_scalar=rows is None), rows)


def fake_model(call: Call, operator: str, row: int) -> tuple[str, ...]:
    """Answers with a fingerprint of all that may decide the output of the call, and nothing else.

    A greedy call depends on no random number; one that is not deterministic is drawn per operator
    and row. The submission in an operator's name (``s/x``) is ignored.
    """
    sampling = call.sampling
    if sampling.temperature == 0.0:
        sampling = msgspec.structs.replace(sampling, seed=None, top_p=1.0, top_k=0, min_p=0.0)
    draw = None if sampling.is_deterministic else (operator.rpartition("/")[2], row)
    content = msgspec.json.encode((call.messages, call.prompt, call.model, sampling, draw))
    return tuple(
        hashlib.sha256(content + bytes([choice])).hexdigest()[:6] for choice in range(sampling.n)
    )
