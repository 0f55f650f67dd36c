"""Writes formats out in the texts that read them, so that equal prompts look equal.

>>> from helium.plan.logical_plan import LogicalPlan
>>> from helium.plan.operators import Format, Input, Llm, Message, Output, Reference
>>> from helium.plan.text import text
>>> before = LogicalPlan((
...     Input("q", column="q"),
...     Format("question", text=text("Question: ", Reference("q"))),
...     Llm("a", messages=(Message("user", text(Reference("question"), " Be brief.")),)),
...     Output("answer", source="a"),
... ))
>>> print(InlineFormats().apply(before).plan)
q = input q
question = format "Question: {q}"
a = llm user: "Question: {q} Be brief."
answer = output a

The format itself stays for ``prune_unused_operators``. A format that is nothing but one hole is
replaced by its producer wherever it is read, as by slices, functions and outputs.
"""

from __future__ import annotations

from helium.optimizer.expansion import Budget, cost
from helium.optimizer.rule import Rewrite
from helium.plan.logical_plan import LogicalPlan
from helium.plan.operators import Format, Literal, Operator, Reference, Text
from helium.plan.rewrite import replace_reads, replace_texts
from helium.plan.text import canonical_text


class InlineFormats:
    """One forward pass; a format is expanded before its readers are. See the module."""

    def apply(self, plan: LogicalPlan) -> Rewrite:
        """Returns the plan with formats written out, as far as ``Budget`` allows."""
        if not any(isinstance(operator, Format) for operator in plan.operators):
            return Rewrite(plan)
        budget = Budget(plan)
        expanded: dict[str, Text] = {}
        aliases: dict[str, str] = {}

        def inline(text: Text) -> Text:
            if not expanded or not any(
                isinstance(p, Reference) and p.operator in expanded for p in text
            ):
                return text
            parts: list[Literal | Reference] = []
            for part in text:
                inner = expanded.get(part.operator) if isinstance(part, Reference) else None
                if inner is not None and budget.take(cost(inner)):
                    parts.extend(inner)
                else:
                    parts.append(part)
            return canonical_text(parts)

        operators: list[Operator] = []
        for operator in plan.operators:
            operator = replace_texts(replace_reads(operator, aliases), inline)
            if isinstance(operator, Format):
                expanded[operator.name] = operator.text
                alias = _alias(operator, plan)
                if alias is not None:
                    aliases[operator.name] = alias
            operators.append(operator)
        if all(new is old for new, old in zip(operators, plan.operators, strict=True)):
            return Rewrite(plan)
        return Rewrite(LogicalPlan(tuple(operators)))


def _alias(operator: Format, plan: LogicalPlan) -> str | None:
    """Returns the producer whose only output the format repeats, if that is all it does."""
    match operator.text:
        case (Reference(operator=name),) if plan.widths[name] == 1:
            return name
    return None
