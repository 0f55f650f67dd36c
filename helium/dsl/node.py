"""Nodes: symbolic values, and where in the user's code each was written."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NoReturn

from helium.errors import WorkflowError
from helium.plan.operators import Format, Operator, Reference, Slice, Text
from helium.plan.text import text

_ids = itertools.count()
_scope: ContextVar[str] = ContextVar("helium_scope", default="")


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Node:
    """A value that will exist when the workflow runs: one string per row.

    Nodes are immutable and compare by identity. ``node[1:3]`` takes rows, ``"Q: " + node`` makes a
    longer text.

    Attributes:
        operator: The plan's operator; it carries ``id`` as its name and refers to operands by id.
        operands: The nodes it reads.
        name: The name the user gave, scope included, or ``None``.
        scope: Prefix of a derived name.
        place: ``file:line`` of the user's call.
        width: Outputs per row: ``n`` of an LLM operator.
    """

    operator: Operator
    operands: tuple[Node, ...]
    name: str | None
    scope: str
    place: str
    width: int = 1

    @property
    def id(self) -> str:
        """Identity of the node within this process."""
        return self.operator.name

    def choice(self, index: int) -> Node:
        """Returns one of the ``n`` outputs per row.

        Raises:
            WorkflowError: There is no such output.
        """
        if not 0 <= index < self.width:
            raise WorkflowError(
                f"{place_of_caller()}: {self!r} has {self.width} output(s) per row, choice "
                f"{index} was asked for; count from 0"
            )
        if self.width == 1:
            return self
        return record(Format(new_id(), text=(Reference(self.id, index),)), (self,))

    def __getitem__(self, rows: slice) -> Node:
        if not isinstance(rows, slice):
            raise WorkflowError(
                f"{place_of_caller()}: {self!r} is indexed with {rows!r}; take rows with a slice, "
                "node[i:i+1], and one of several outputs with node.choice(i)"
            )
        operator = Slice(new_id(), source=self.id, start=rows.start, stop=rows.stop, step=rows.step)
        return record(operator, (self,), width=self.width)

    def __add__(self, other: str | Node) -> Node:
        return join((self, other))

    def __radd__(self, other: str) -> Node:
        return join((other, self))

    def __repr__(self) -> str:
        kind = type(self.operator).__name__.lower()
        return f"<{kind}{f' {self.name!r}' if self.name else ''} from {self.place}>"

    def __str__(self) -> str:
        self._refuse("turned into a string now", "use ops.fmt('... {}', node)")

    def __format__(self, spec: str) -> str:
        self._refuse("formatted into a string now", "use ops.fmt('... {}', node), not an f-string")

    def __bool__(self) -> bool:
        self._refuse("tested now", "decide in a registered function instead")

    def __iter__(self) -> Iterator[NoReturn]:
        self._refuse("iterated over now", "take rows with node[start:stop]")

    def _refuse(self, what: str, hint: str) -> NoReturn:
        raise WorkflowError(
            f"{place_of_caller()}: {self!r} is {what}, but it has a value only when the workflow "
            f"runs; {hint}"
        )


def record(
    operator: Operator,
    operands: tuple[Node, ...],
    *,
    name: str | None = None,
    width: int = 1,
) -> Node:
    """Makes the node of an operator, noting the user's line and the current scope."""
    scope = _scope.get()
    place = place_of_caller()
    if name is not None and not (isinstance(name, str) and name):
        raise WorkflowError(f"{place}: operator name {name!r} is not a non-empty string")
    full_name = None if name is None else scope + name
    return Node(operator, tuple(dict.fromkeys(operands)), full_name, scope, place, width)


def join(parts: tuple[str | Node, ...], name: str | None = None) -> Node:
    """Records the text made of the parts."""
    nodes = tuple(part for part in parts if isinstance(part, Node))
    return record(Format(new_id(), text=to_text(parts)), nodes, name=name)


def to_text(parts: tuple[str | Node, ...]) -> Text:
    """Returns the plan's text of strings and nodes.

    Raises:
        WorkflowError: A part is neither, or a node with several outputs per row.
    """
    for part in parts:
        if isinstance(part, Node):
            if part.width > 1:
                raise WorkflowError(
                    f"{place_of_caller()}: {part!r} has {part.width} outputs per row; put one into "
                    "the text with node.choice(i), or combine them in a registered function"
                )
        elif not isinstance(part, str):
            raise WorkflowError(
                f"{place_of_caller()}: a text is made of strings and operators, got "
                f"{type(part).__name__} {part!r}"
            )
    return text(*(Reference(part.id) if isinstance(part, Node) else part for part in parts))


def new_id() -> str:
    """Returns an identity for a new node."""
    return f"#{next(_ids)}"


@contextmanager
def scope(name: str) -> Iterator[None]:
    """Puts ``name/`` before the names of all operators recorded inside; nests.

    >>> from helium import ops
    >>> with ops.scope("bull"), ops.scope("round-1"):
    ...     print(ops.data("x", name="note").name)
    bull/round-1/note
    """
    token = _scope.set(f"{_scope.get()}{name}/")
    try:
        yield
    finally:
        _scope.reset(token)


def place_of_caller() -> str:
    """Returns ``file:line`` of the innermost frame outside the language."""
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__", "").startswith("helium.dsl") and frame.f_back:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
