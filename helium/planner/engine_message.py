"""The message that tells one engine about a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from helium.errors import PlanError
from helium.planner.lowering import Lowering
from helium.protocol import (
    MAX_PLAN_BYTES,
    PROTOCOL_VERSION,
    EnginePlan,
    PlanOperator,
    TemplateNode,
)
from helium.templates.rendering import VariableRun, token_ids


def build_engine_plan(
    workflow: str, lowering: Lowering, calls: Mapping[str, int], ranks: Mapping[str, int]
) -> EnginePlan:
    """Returns the message for an engine; linear in its operators and their static tokens.

    Where it would be larger than an engine takes, static tokens that a single call reads are left
    out, then all.

    Args:
        calls: Calls per operator on this engine.
        ranks: Rank of the first call of each.

    Raises:
        PlanError: The message is too large even so.
    """
    choices: tuple[Callable[[int], bool], ...] = (
        lambda uses: True,
        lambda uses: uses > 1,
        lambda uses: False,
    )
    num_bytes = 0
    for keeps_tokens in choices:
        plan = _build(workflow, lowering, calls, ranks, keeps_tokens)
        num_bytes = len(plan.to_json())
        if num_bytes <= MAX_PLAN_BYTES:
            return plan
    raise PlanError(
        f"plan: {len(calls)} operators take {num_bytes} bytes, an engine takes {MAX_PLAN_BYTES}; "
        "split the workflow or pass repeated work as rows"
    )


def _build(
    workflow: str,
    lowering: Lowering,
    calls: Mapping[str, int],
    ranks: Mapping[str, int],
    keeps_tokens: Callable[[int], bool],
) -> EnginePlan:
    tree, tokens = lowering.tree, lowering.prefixes.tokens
    uses = tree.num_uses(lambda name: calls.get(name, 0))
    numbers = {0: 0}
    nodes = [TemplateNode(parent=0)]
    for node in tree.preorder():
        if not node or not uses[node]:
            continue
        parent, run = tree.parents[node], tree.runs[node]
        num_tokens = round(tokens[node] - tokens[parent])
        if isinstance(run, VariableRun):
            num_join_tokens = num_tokens if run.value is None else run.num_join_tokens
        else:
            num_join_tokens = 0
        is_known = isinstance(run, bytes) and keeps_tokens(uses[node])
        numbers[node] = len(nodes)
        nodes.append(
            TemplateNode(
                parent=numbers[parent],
                num_tokens=num_tokens,
                token_ids=tuple(token_ids(run)) if is_known and isinstance(run, bytes) else None,
                num_uses=uses[node],
                num_join_tokens=num_join_tokens,
            )
        )
    models = {operator.name: operator.model for operator in lowering.compiled.plan.llm_operators}
    operators = tuple(
        PlanOperator(
            name=name,
            rank=ranks[name],
            num_calls=calls[name],
            output_tokens=lowering.output_tokens[name],
            template=tuple(numbers[node] for node in tree.path(tree.leaves[name])),
            # An engine knows only the operators it runs itself.
            reads=tuple(read for read in lowering.reads[name] if read in calls),
            model=models[name],
        )
        for name in sorted(calls, key=lambda name: (ranks[name], name))
    )
    return EnginePlan(PROTOCOL_VERSION, workflow, operators, tuple(nodes))
