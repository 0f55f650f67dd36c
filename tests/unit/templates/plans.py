"""Small plans for the tests of templates, cost, planner and explain."""

from __future__ import annotations

from collections.abc import Sequence

from helium.plan.compiled_plan import CompiledPlan, bind
from helium.plan.logical_plan import LogicalPlan
from helium.plan.operators import Llm, Message, Operator, Output, Reference, Sampling
from helium.plan.text import text

Part = str | Reference


def chat(
    name: str,
    *user: Part,
    system: str | None = None,
    history: str | None = None,
    max_tokens: int | None = 20,
    model: str | None = None,
) -> Llm:
    """Returns an LLM operator with one user message."""
    messages = [Message("system", text(system))] if system is not None else []
    messages.append(Message("user", text(*user)))
    sampling = Sampling(max_tokens=max_tokens)
    return Llm(name, messages=tuple(messages), history=history, sampling=sampling, model=model)


def compile_plan(operators: Sequence[Operator], **batch: str | Sequence[str]) -> CompiledPlan:
    """Returns a valid plan bound to a batch; its LLM operators are its outputs by default."""
    if not any(isinstance(operator, Output) for operator in operators):
        ends = [operator.name for operator in operators if isinstance(operator, Llm)]
        operators = [*operators, *(Output(f"out_{name}", source=name) for name in ends)]
    plan = LogicalPlan(tuple(operators))
    plan.validate()
    return bind(plan, batch)
