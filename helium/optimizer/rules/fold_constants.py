"""Computes what depends on neither the batch nor a model while planning.

>>> from helium.plan.logical_plan import LogicalPlan
>>> from helium.plan.operators import Data, Format, Input, Llm, Message, Output, Reference
>>> from helium.plan.text import text
>>> before = LogicalPlan((
...     Input("q", column="q"),
...     Data("tone", values=("brief",), is_scalar=True),
...     Format("rule", text=text("Be ", Reference("tone"), ".")),
...     Llm("a", messages=(Message("user", text(Reference("rule"), " ", Reference("q"))),)),
...     Output("answer", source="a"),
... ))
>>> print(FoldConstants().apply(before).plan)
q = input q
tone = data "brief"
rule = data "Be brief."
a = llm user: "Be brief. {q}"
answer = output a

Scalar data becomes literal text where it is read (so templates see it as static), formats of
constants become data, and slices and concatenations of data become data. Functions are not run.
"""

from __future__ import annotations

from helium.optimizer.expansion import Budget
from helium.optimizer.rule import Rewrite
from helium.plan.logical_plan import LogicalPlan
from helium.plan.operators import Concat, Data, Format, Literal, Operator, Reference, Slice, Text
from helium.plan.rewrite import replace_texts
from helium.plan.text import canonical_text


class FoldConstants:
    """One forward pass; see the module."""

    def apply(self, plan: LogicalPlan) -> Rewrite:
        """Returns the plan with its constants computed, as far as ``Budget`` allows."""
        if not any(isinstance(operator, (Data, Format)) for operator in plan.operators):
            return Rewrite(plan)  # all constants begin there
        budget = Budget(plan)
        constants: dict[str, Data] = {}

        def fold_text(text: Text) -> Text:
            if not constants:
                return text
            parts = [fold_part(part) for part in text]
            if all(new is old for new, old in zip(parts, text, strict=True)):
                return text
            return canonical_text(parts)

        def fold_part(part: Literal | Reference) -> Literal | Reference:
            if isinstance(part, Reference):
                data = constants.get(part.operator)
                if data is not None and data.is_scalar and budget.take(len(data.values[0]) + 1):
                    return Literal(data.values[0])
            return part

        operators: list[Operator] = []
        for operator in plan.operators:
            operator = _fold(replace_texts(operator, fold_text), constants, budget)
            if isinstance(operator, Data):
                constants[operator.name] = operator
            operators.append(operator)
        if all(new is old for new, old in zip(operators, plan.operators, strict=True)):
            return Rewrite(plan)
        return Rewrite(LogicalPlan(tuple(operators)))


def _fold(operator: Operator, constants: dict[str, Data], budget: Budget) -> Operator:
    match operator:
        case Format(text=()):
            return Data(operator.name, values=("",), is_scalar=True)
        case Format(text=(Literal(text=value),)):
            return Data(operator.name, values=(value,), is_scalar=True)
        case Slice() if operator.source in constants:
            bounds = slice(operator.start, operator.stop, operator.step)
            values = constants[operator.source].values[bounds]
        case Concat() if all(source in constants for source in operator.sources):
            values = tuple(v for source in operator.sources for v in constants[source].values)
        case _:
            return operator
    if not budget.take(sum(map(len, values)) + len(values)):
        return operator
    return Data(operator.name, values=values)
