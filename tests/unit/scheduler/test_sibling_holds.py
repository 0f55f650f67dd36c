"""A call waits a step where a sibling computes its prefix, and never longer than is bounded."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from tests.unit.scheduler.bench import Bench, tokens
from vllm_helium.scheduler.sibling_holds import MAX_HELD_PER_STEP, MAX_HOLDS, SiblingHolds

BLOCK = 64
SHARED = tokens(0, 3 * BLOCK + 40)


def bench_with_siblings(num_siblings: int = 3, num_output: int = 8, **helium) -> Bench:
    bench = Bench(helium, block_size=BLOCK)
    for number in range(num_siblings):
        bench.add(f"s{number}", [*SHARED, *tokens(1_000 * (number + 1), 20)], num_output)
    return bench


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_siblings_wait_one_step_and_compute_only_what_is_their_own(async_scheduling):
    bench = Bench(True, block_size=BLOCK, async_scheduling=async_scheduling)
    for number in range(3):
        bench.add(f"s{number}", [*SHARED, *tokens(1_000 * (number + 1), 20)], 8)
    bench.finish()
    assert bench.steps[0] == {"s0": len(SHARED) + 20}
    assert bench.steps[1] == {"s0": 1, "s1": 20, "s2": 20}
    assert bench.scheduler.holds.describe() == {"num_held": 2, "num_tokens": 80}
    assert sorted(bench.ended) == ["s0", "s1", "s2"]


@pytest.mark.parametrize("helium", [{"hold_tokens": 0}, {"hold_tokens": 41}])
def test_what_is_not_worth_a_step_is_computed_at_once(helium):
    bench = bench_with_siblings(**helium)
    bench.finish()
    assert bench.steps[0] == {"s0": len(SHARED) + 20, "s1": 60, "s2": 60}


def test_siblings_of_another_tenant_are_not_waited_for():
    bench = Bench(True, block_size=BLOCK)
    for salt in ("a", "b"):
        bench.add(salt, [*SHARED, *tokens(1_000, 20)], 2, salt=salt)
    bench.finish()
    assert len(bench.steps[0]) == 2


def test_others_go_ahead_while_a_sibling_is_held():
    bench = bench_with_siblings(2)
    bench.add("other", tokens(70_000, 30), 2)
    bench.finish()
    assert sorted(bench.steps[0]) == ["other", "s0"]


def test_the_prompt_of_a_running_request_is_copied_from_without_a_hold():
    bench = bench_with_siblings(1, num_output=40)
    bench.step()
    bench.add("late", [*SHARED, *tokens(9_000, 20)], 2)
    bench.finish()
    assert next(step["late"] for step in bench.steps if "late" in step) == 20
    assert bench.scheduler.holds.num_held == 0


def test_a_request_held_for_an_aborted_sibling_goes_on():
    bench = bench_with_siblings(2)
    bench.step()
    bench.engine.abort("s0")
    bench.finish()
    assert list(bench.ended) == ["s1"]


class Waiting:
    """What is asked of a request."""

    num_computed_tokens = 0
    num_tokens = 1_000


def test_a_request_is_held_so_many_times_and_then_begins():
    holds = SiblingHolds(8, lambda request: 500)
    request, held = Waiting(), 0
    for _ in range(3 * MAX_HOLDS):
        holds.step_starts()
        held += holds.is_held(request)
    assert held == MAX_HOLDS


def test_a_step_looks_up_a_bounded_number_of_siblings():
    holds = SiblingHolds(8, lambda request: 500)
    assert sum(holds.is_held(Waiting()) for _ in range(1_000)) == MAX_HELD_PER_STEP
    holds.step_starts()
    assert holds.is_held(Waiting())


def test_a_request_with_kv_of_its_own_or_a_short_prompt_is_not_looked_up():
    holds = SiblingHolds(8, lambda request: pytest.fail("looked up"))
    resumed, short = Waiting(), Waiting()
    resumed.num_computed_tokens, short.num_tokens = 5, 8
    assert not holds.is_held(resumed) and not holds.is_held(short)
