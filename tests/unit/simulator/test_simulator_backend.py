"""The runtime's own code in virtual time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helium.cost import Profile, RooflineModel, operator_signatures
from helium.plan.calls import Call
from helium.plan.compiled_plan import CompiledPlan, bind
from helium.plan.interpret import interpret
from helium.plan.logical_plan import LogicalPlan
from helium.plan.operators import Input, Lambda, Llm, Message, Output, Reference, Sampling
from helium.plan.text import text
from helium.planner import plan_workflow
from helium.runtime import run_plan

pytest.importorskip("vllm")

from vllm_helium.simulator.engine_options import EngineOptions
from vllm_helium.simulator.fake_model import FakeModel, OutputLengths
from vllm_helium.simulator.simulation import Simulation
from vllm_helium.simulator.tokenizer import PieceTokenizer

COST = RooflineModel.preset("H100-80GB", "Qwen3-8B")
LENGTHS = OutputLengths(lambda call: 40.0)
FUNCTIONS = {"shout": lambda value: value.upper()}
ROWS = 5


def _workflow() -> CompiledPlan:
    """Drafts, a function, a continued conversation, and a join."""
    sampling = Sampling(max_tokens=60)
    question, draft = Reference("question"), Reference("draft")
    system = Message("system", text("Answer in plain words and keep to the point. " * 5))
    plan = LogicalPlan(
        (
            Input("question", column="question"),
            Llm("draft", messages=(system, Message("user", text(question))), sampling=sampling),
            Lambda("loud", "shout", ("draft",)),
            Llm(
                "critic",
                messages=(system, Message("user", text("Criticize: ", Reference("loud")))),
                sampling=sampling,
            ),
            Llm(
                "final",
                messages=(Message("user", text("Consider: ", Reference("critic"))),),
                history="draft",
                sampling=sampling,
            ),
            Llm("title", prompt=text("A title for ", draft, ":"), sampling=Sampling(max_tokens=7)),
            Output("answer", source="final"),
            Output("heading", source="title"),
        )
    )
    plan.validate()
    columns = {"question": [f"What is number {row}?" for row in range(ROWS)]}
    return bind(plan, columns, functions=FUNCTIONS)


def _interpreted(compiled: CompiledPlan):
    model = FakeModel(PieceTokenizer(), LENGTHS)

    def answer(call: Call, name: str, row: int) -> tuple[str, ...]:
        return tuple(output.text for output in model.answer(call))

    return interpret(compiled, answer, FUNCTIONS)


def _schedule(compiled: CompiledPlan, simulation: Simulation):
    """A plan by what a first run of other engines has taught."""
    profile, signatures = Profile(), operator_signatures(compiled.plan)

    def learn(name, row, answer):
        profile.observe_output(signatures[name], answer.num_output_tokens)

    first = _simulation()
    first.run(lambda: run_plan(compiled, first.backends, functions=FUNCTIONS, on_call=learn))
    num_engines = len(simulation.engines)
    return plan_workflow(compiled, first.tokenizer, profile=profile, num_engines=num_engines)


def _simulation(num_engines: int = 1, **options) -> Simulation:
    options = EngineOptions(**{"num_blocks": 400, **options})
    return Simulation(COST, options, num_engines=num_engines, lengths=LENGTHS)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("num_blocks", [400, 27])
def test_outputs_equal_the_reference_interpreter(is_async, num_blocks):
    compiled = _workflow()
    simulation = _simulation(num_blocks=num_blocks, async_scheduling=is_async)
    result = simulation.run(lambda: run_plan(compiled, simulation.backends, functions=FUNCTIONS))

    assert result.failures == []
    assert result.outputs == _interpreted(compiled)
    figures = simulation.figures()
    assert figures.num_calls == result.total.num_calls == 4 * ROWS
    assert figures.num_prompt_tokens == result.total.num_prompt_tokens
    assert figures.num_output_tokens == result.total.num_output_tokens
    assert figures.num_cached_tokens == result.total.num_cached_tokens > 0
    assert simulation.clock.now() == max(record.finish_s for record in simulation.calls())


@pytest.mark.parametrize("num_engines", [1, 2])
def test_a_planned_run_has_the_same_outputs(num_engines):
    compiled = _workflow()
    simulation = _simulation(num_engines, helium=True)
    schedule = _schedule(compiled, simulation)
    result = simulation.run(
        lambda: run_plan(compiled, simulation.backends, schedule=schedule, functions=FUNCTIONS)
    )

    assert result.failures == []
    assert result.outputs == _interpreted(compiled)
    planned = [e.scheduler.helium_rpc("status")["num_planned_requests"] for e in simulation.engines]
    assert sum(planned) == 4 * ROWS and all(planned)


def test_first_turns_share_one_step():
    compiled = _workflow()
    simulation = _simulation()
    simulation.run(lambda: run_plan(compiled, simulation.backends, functions=FUNCTIONS))
    drafts = [record for record in simulation.calls() if record.arrival_s == 0.0]
    assert len(drafts) == ROWS
    assert len({record.first_token_s for record in drafts}) == 1


def test_a_run_that_is_cut_off_leaves_engines_empty():
    import asyncio

    compiled = _workflow()
    simulation = _simulation()

    async def program() -> None:
        async with asyncio.timeout(0.2):
            await run_plan(compiled, simulation.backends, functions=FUNCTIONS)

    with pytest.raises(TimeoutError):
        simulation.run(program)
    assert simulation.clock.now() == pytest.approx(0.2)
    simulation.engines[0].prepare()
    assert simulation.engines[0].scheduler.get_request_counts() == (0, 0)


def figures_of_a_run() -> str:
    """Everything a run measures, as text; also what the other process prints."""
    compiled = _workflow()
    simulation = _simulation(2, num_blocks=30, helium=True)
    schedule = _schedule(compiled, simulation)
    result = simulation.run(
        lambda: run_plan(compiled, simulation.backends, schedule=schedule, functions=FUNCTIONS)
    )
    calls = [(r.request_id, r.arrival_s, r.first_token_s, r.finish_s) for r in simulation.calls()]
    measured = [simulation.figures().to_dict(), simulation.clock.now(), calls, result.outputs]
    return json.dumps(measured)


def test_another_process_with_other_hashes_measures_the_same_bytes():
    code = "import runpy, sys; print(runpy.run_path(sys.argv[1])['figures_of_a_run']())"
    environment = {**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__))],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    assert other.stdout.splitlines()[-1] == figures_of_a_run()
