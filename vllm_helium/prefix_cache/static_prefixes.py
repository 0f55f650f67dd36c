"""Which static prefixes of a plan's templates are worth computing before their calls come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from helium.protocol import EnginePlan, PlanOperator

_MAX_PREFIXES = 64
"""Prefixes of one plan: each is a request of its own."""


@dataclass(frozen=True)
class StaticPrefix:
    """A run of tokens that several calls of a plan start with.

    Attributes:
        nodes: Template nodes from below the root to the last static one.
        ends: Where each node's tokens end in the prompt, in tokens.
        token_ids: The whole prefix.
        rank: Position in the soft schedule of the first call that reads it.
    """

    nodes: tuple[int, ...]
    ends: tuple[int, ...]
    token_ids: list[int]
    rank: int


def static_prefixes(
    plan: EnginePlan,
    includes: Callable[[PlanOperator], bool],
    *,
    min_tokens: int,
    max_tokens: int,
    max_total_tokens: int,
    min_uses: int = 2,
) -> list[StaticPrefix]:
    """Returns the longest static prefixes with enough uses, the one needed first at the front.

    Prefixes that start alike count their common part once. O(nodes + templates' lengths) and the
    tokens returned.

    Args:
        includes: Which operators count; those of other models have other KV.
        min_tokens: Shortest prefix worth a request.
        max_tokens: Longest prefix the engine takes.
        max_total_tokens: Tokens in all; prefixes that do not fit any more are left out.
        min_uses: Fewest expected calls that start with the prefix.
    """
    num_uses, ranks = _uses(plan, includes)
    is_inner = set()
    for node, uses in num_uses.items():
        if uses >= min_uses:
            is_inner.add(plan.templates[node].parent)
    leaves = [node for node, uses in num_uses.items() if uses >= min_uses and node not in is_inner]
    chosen: list[StaticPrefix] = []
    counted: set[int] = set()
    for node in sorted(leaves, key=lambda node: (ranks[node], node)):
        if len(chosen) == _MAX_PREFIXES:
            break
        path = _path(plan, node)
        num_tokens = sum(plan.templates[part].num_tokens for part in path)
        new = sum(plan.templates[part].num_tokens for part in path if part not in counted)
        if not min_tokens <= num_tokens <= max_tokens or new > max_total_tokens:
            continue
        max_total_tokens -= new
        counted.update(path)
        chosen.append(_prefix(plan, path, ranks[node]))
    return chosen


def _uses(
    plan: EnginePlan, includes: Callable[[PlanOperator], bool]
) -> tuple[dict[int, int], dict[int, int]]:
    """Calls that start with each static node's prefix, and the rank of the first of them."""
    num_uses: dict[int, int] = {}
    ranks: dict[int, int] = {}
    for operator in plan.operators:
        if not includes(operator):
            continue
        for node in operator.template:
            if plan.templates[node].token_ids is None:
                break
            num_uses[node] = num_uses.get(node, 0) + operator.num_calls
            ranks[node] = min(ranks.get(node, operator.rank), operator.rank)
    return num_uses, ranks


def _path(plan: EnginePlan, node: int) -> tuple[int, ...]:
    path = []
    while node:
        path.append(node)
        node = plan.templates[node].parent
    return tuple(reversed(path))


def _prefix(plan: EnginePlan, path: tuple[int, ...], rank: int) -> StaticPrefix:
    token_ids: list[int] = []
    ends = []
    for node in path:
        token_ids += plan.templates[node].token_ids or ()
        ends.append(len(token_ids))
    return StaticPrefix(path, tuple(ends), token_ids, rank)
