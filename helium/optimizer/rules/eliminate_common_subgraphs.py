"""Computes operators that must have equal values once, greedy and seeded LLM calls included.

>>> from helium.plan.logical_plan import LogicalPlan
>>> from helium.plan.operators import Input, Llm, Message, Output, Reference
>>> from helium.plan.text import text
>>> ask = (Message("user", text(Reference("q"))),)
>>> again = (Message("user", text(Reference("q2"))),)
>>> before = LogicalPlan((
...     Input("q", column="q"),
...     Input("q2", column="q"),
...     Llm("first", messages=ask),
...     Llm("second", messages=again),
...     Output("a", source="first"),
...     Output("b", source="second"),
... ))
>>> print(EliminateCommonSubgraphs().apply(before).plan)
q = input q
first = llm user: "{q}"
a = output first
b = output first

Source: Helium, §4 (common subgraph elimination). The reference merges operators without LLM calls,
one level deep; merging bottom-up by structure reaches the fixed point in one pass.
"""

from __future__ import annotations

from collections.abc import Hashable

import msgspec

from helium.optimizer.rule import Rewrite
from helium.plan.logical_plan import LogicalPlan
from helium.plan.operators import Data, Llm, Operator, Output, Sampling, Slice
from helium.plan.rewrite import replace_reads


class EliminateCommonSubgraphs:
    """Interns operators by kind, fields and (already merged) operands; see the module.

    An LLM call that is not deterministic is drawn anew per operator and never merged. For equality,
    sampling is reduced to what can matter: a greedy call ignores seed, top_p, top_k and min_p.
    """

    def apply(self, plan: LogicalPlan) -> Rewrite:
        """Returns the plan without repeated operators; the first of equal ones stays."""
        replaced: dict[str, str] = {}
        first: dict[Hashable, str] = {}
        kept: list[Operator] = []
        for operator in plan.operators:
            operator = replace_reads(operator, replaced)
            key = _key(operator)
            if key is not None:
                other = first.setdefault(key, operator.name)
                if other != operator.name:
                    replaced[operator.name] = other
                    continue
            kept.append(operator)
        if not replaced:
            return Rewrite(plan)
        return Rewrite(LogicalPlan(tuple(kept)), replaced)


def _key(operator: Operator) -> Hashable | None:
    """Returns what decides the operator's value, or ``None`` if it must stay by itself."""
    match operator:
        case Output():
            return None
        case Llm():
            if not operator.sampling.is_deterministic:
                return None
            return (
                "llm",
                operator.history,
                operator.messages,
                operator.prompt,
                operator.model,
                _sampling_key(operator.sampling),
            )
        case Data():
            return ("data", operator.is_scalar, operator.values)
        case Slice():
            # Spellings of one slice: x[0:5], x[:5:1]
            step = 1 if operator.step is None else operator.step
            start = 0 if operator.start is None and step > 0 else operator.start
            return ("slice", operator.source, start, operator.stop, step)
    return (type(operator), *msgspec.structs.astuple(operator)[1:])


def _sampling_key(sampling: Sampling) -> Hashable:
    ignored = (sampling.seed, sampling.top_p, sampling.top_k, sampling.min_p)
    if sampling.temperature == 0.0 and ignored != (None, 1.0, 0, 0.0):
        sampling = msgspec.structs.replace(sampling, seed=None, top_p=1.0, top_k=0, min_p=0.0)
    if sampling.structured is None:
        return sampling
    # The order of a schema's properties is the order of the output's, so bytes and not dicts.
    structured = msgspec.json.encode(sampling.structured)
    return (msgspec.structs.replace(sampling, structured=None), structured)
