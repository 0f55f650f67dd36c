"""Making and taking apart ``Text``: strings with holes for other operators' outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from helium.plan.operators import Literal, Reference, Text


def text(*parts: str | Literal | Reference) -> Text:
    """Returns the canonical text of the parts: empty literals dropped, neighbours joined.

    >>> text("a", "", "b", Reference("q"))
    (Literal(text='ab'), Reference(operator='q', choice=0))
    """
    return canonical_text(Literal(part) if isinstance(part, str) else part for part in parts)


def canonical_text(parts: Iterable[Literal | Reference]) -> Text:
    """Joins neighbouring literals and drops empty ones; linear in the characters."""
    result: list[Literal | Reference] = []
    run: list[Literal] = []

    def close() -> None:
        if len(run) == 1:
            result.append(run[0])
        elif run:
            result.append(Literal("".join(literal.text for literal in run)))
        run.clear()

    for part in parts:
        if isinstance(part, Reference):
            close()
            result.append(part)
        elif part.text:
            run.append(part)
    close()
    return tuple(result)


def is_canonical(parts: Text) -> bool:
    """Whether no literal is empty and no two literals are neighbours."""
    was_literal = False
    for part in parts:
        is_literal = isinstance(part, Literal)
        if is_literal and (was_literal or not part.text):  # type: ignore[union-attr]
            return False
        was_literal = is_literal
    return True


def render(parts: Text, value_of: Callable[[Reference], str]) -> str:
    """Fills the holes of a text with the values ``value_of`` gives for its references."""
    return "".join(part.text if isinstance(part, Literal) else value_of(part) for part in parts)
