"""The baselines' dataflow means what the reference interpreter means."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.baselines.dataflow import run_dataflow
from helium.errors import EngineError, PlanError
from helium.plan.compiled_plan import CompiledPlan, bind
from helium.plan.interpret import interpret
from helium.plan.logical_plan import LogicalPlan
from helium.plan.operators import (
    Concat,
    Data,
    Format,
    Input,
    Lambda,
    Llm,
    Message,
    Output,
    Reference,
    Sampling,
    Slice,
)
from helium.plan.text import text
from helium.runtime import ModelAnswer

FUNCTIONS = {"join": lambda values, other: "+".join(values) + other}


def _plan() -> CompiledPlan:
    """Every kind of operator, a scalar, a conversation and several outputs per call."""
    q = Reference("q")
    plan = LogicalPlan(
        (
            Input("q", column="q"),
            Data("style", values=("short",), is_scalar=True),
            Format("task", text(Reference("style"), ": ", q)),
            Llm(
                "drafts",
                messages=(Message("user", text(Reference("task"))),),
                sampling=Sampling(temperature=1.0, n=2),
            ),
            Lambda("joined", "join", ("drafts", "q")),
            Llm("one", messages=(Message("user", text(Reference("drafts", 1), q)),)),
            Llm(
                "two",
                messages=(Message("user", text("more ", Reference("joined"))),),
                history="one",
            ),
            Llm("raw", prompt=text(Reference("style"), " ", Reference("two"))),
            Slice("some", source="raw", start=1),
            Concat("all", sources=("some", "two")),
            Output("out", source="all"),
            Output("drafts_out", source="drafts"),
        )
    )
    plan.validate()
    return bind(plan, {"q": ["a", "b", "c"]}, functions=FUNCTIONS)


def _texts(call) -> tuple[str, ...]:
    said = "|".join(content for _, content in call.messages) or call.prompt
    return tuple(f"<{said}#{number}>" for number in range(call.sampling.n))


def test_outputs_equal_the_reference_interpreter():
    compiled = _plan()
    made = []

    async def ask(operator, row, call):
        await asyncio.sleep(0.001 * (row + len(operator) % 3))
        made.append((operator, row))
        return ModelAnswer(_texts(call))

    outputs = asyncio.run(run_dataflow(compiled, ask, FUNCTIONS))
    assert outputs == interpret(compiled, lambda call, name, row: _texts(call), FUNCTIONS)
    assert sorted(made) == sorted((n, r) for n in ("drafts", "one", "two", "raw") for r in range(3))


def test_a_call_that_fails_ends_the_run_with_its_error():
    async def ask(operator, row, call):
        if operator == "one" and row == 1:
            raise EngineError("the engine is gone")
        await asyncio.sleep(0.001)
        return ModelAnswer(_texts(call))

    with pytest.raises(EngineError, match="gone"):
        asyncio.run(run_dataflow(_plan(), ask, FUNCTIONS))


def test_an_optimized_batch_is_refused():
    compiled = _plan()
    known = CompiledPlan(compiled.plan, compiled.columns, known={"one": {0: ("x",)}})

    async def ask(operator, row, call):
        return ModelAnswer(_texts(call))

    with pytest.raises(PlanError, match="as written"):
        asyncio.run(run_dataflow(known, ask, FUNCTIONS))
