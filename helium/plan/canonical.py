"""The canonical form of a plan: equal for plans that differ only in names and order."""

from __future__ import annotations

from collections.abc import Sequence

from helium.plan.operators import Operator, Output
from helium.plan.rewrite import renamed, replace_reads


def canonical_operators(operators: Sequence[Operator]) -> tuple[Operator, ...]:
    """Renames and orders operators by a walk from the outputs; see ``LogicalPlan.canonical``."""
    by_name = {operator.name: operator for operator in operators}
    outputs = [operator for operator in operators if isinstance(operator, Output)]
    names: dict[str, str] = {}
    result: list[Operator] = []
    for output in sorted(outputs, key=lambda output: output.key):
        for operator in _producers_first(output, by_name, names):
            name = str(len(names))
            names[operator.name] = name
            result.append(renamed(replace_reads(operator, names), name))
    return tuple(result)


def _producers_first(
    root: Operator, by_name: dict[str, Operator], done: dict[str, str]
) -> Sequence[Operator]:
    """Returns what ``root`` needs and is not done yet, in depth-first post-order."""
    order: list[Operator] = []
    seen: set[str] = set()
    stack: list[tuple[Operator, bool]] = [(root, False)]
    while stack:
        operator, is_expanded = stack.pop()
        if is_expanded:
            order.append(operator)
        elif operator.name not in seen and operator.name not in done:
            seen.add(operator.name)
            stack.append((operator, True))
            stack.extend((by_name[name], False) for name in reversed(operator.reads))
    return order
