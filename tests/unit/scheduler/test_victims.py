"""Who gives its KV back: the latest arrival's run, and there what the plan needs last."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

pytest.importorskip("vllm")

from helium.protocol import EnginePlan, PlanOperator, WorkflowContext
from tests.unit.scheduler.bench import Bench, tokens
from vllm_helium.scheduler.plan_queue import ORDINARY, Place
from vllm_helium.scheduler.victims import select_victim


@dataclass(eq=False)
class Running:
    """The part of a running request the choice reads."""

    arrival_time: float
    row: int | None = None
    run: str = "run"
    num_computed_tokens: int = 100


def place_of(request: Running) -> Place:
    if request.row is None:
        return Place(ORDINARY, ORDINARY, (0, 0), 1)
    return Place(request.run, "tenant", (request.row, 0), 1)


def test_ordinary_traffic_gives_up_its_latest_arrival():
    running = [Running(3.0), Running(1.0), Running(2.0)]
    assert select_victim(running, place_of) is running[0]


def test_a_run_gives_up_its_last_row_whatever_arrived_last():
    first, last = Running(9.0, row=0), Running(5.0, row=7)
    assert select_victim([last, first, Running(1.0)], place_of) is last


def test_inside_a_row_the_cheapest_to_compute_again_goes():
    dear, cheap = Running(1.0, row=3, num_computed_tokens=900), Running(0.0, row=3)
    assert select_victim([dear, cheap], place_of) is cheap


def test_an_ordinary_request_is_not_given_up_for_a_later_planned_one():
    ordinary, planned = Running(1.0), Running(2.0, row=0)
    assert select_victim([ordinary, planned], place_of) is planned


def test_another_run_that_came_earlier_is_left_alone():
    earlier, later = Running(1.0, row=50, run="earlier"), Running(2.0, row=0, run="later")
    assert select_victim([earlier, later], place_of) is later


@pytest.mark.parametrize(
    ("helium", "victim"), [({"victims": "plan"}, "row 9"), ({"victims": "last"}, "row 1")]
)
def test_the_engine_preempts_the_chosen_call(helium, victim):
    operators = (PlanOperator("op", rank=0, num_calls=10, output_tokens=200),)
    plan = EnginePlan(1, "victims", operators)
    bench = Bench(helium, num_blocks=41)  # forty to hand out
    digest = bench.register(plan)
    for row in (0, 9, 1):  # one after the other: the last admitted is not the last row
        context = WorkflowContext(digest, "run", "op", row=row)
        bench.add(f"row {row}", tokens(1_000 * row, 150), 120, context)
        bench.step()
    bench.finish()
    preempted = {name for name, record in bench.ended.items() if record.num_preemptions}
    assert preempted == {victim}
    assert bench.scheduler.kv_cache_manager.pool.get_num_free_blocks() == 40
