"""Static prefixes are computed and leased before their calls come, for their tenant alone."""

from __future__ import annotations

import pytest
from vllm.lora.request import LoRARequest

from helium.protocol import EnginePlan, PlanOperator, TemplateNode, WorkflowContext
from tests.unit.scheduler.bench import Bench, tokens

HEAD = tokens(0, 96)


def make_plan(head=HEAD, num_calls=2, **fields):
    model = fields.pop("model", None)
    return EnginePlan(
        version=1,
        workflow="w",
        operators=(
            PlanOperator(name="a", rank=0, num_calls=num_calls, template=(1, 2), model=model),
        ),
        templates=(
            TemplateNode(parent=0),
            TemplateNode(parent=0, num_tokens=len(head), token_ids=tuple(head)),
            TemplateNode(parent=1, num_tokens=16),
        ),
        **fields,
    )


def call(bench, plan, name, row=0, salt=None, start=1000):
    context = WorkflowContext(plan=plan.digest(), run="r", operator="a", row=row)
    bench.add(name, HEAD + tokens(start, 16), 1, context, salt)
    bench.finish()
    return bench.ended[name].num_cached_tokens


def prewarm_counts(bench):
    return bench.scheduler.helium_rpc("status")["prewarm"]


def index_of(bench):
    return bench.scheduler.kv_cache_manager.pool.index


def test_the_first_call_finds_its_static_prefix():
    bench = Bench()
    plan = make_plan()
    bench.register(plan)
    bench.finish()
    assert prewarm_counts(bench)["num_requests"] == 1
    assert index_of(bench).stats()["num_leased_nodes"] == 6
    assert call(bench, plan, "first") == 96


def test_without_prewarming_the_first_call_finds_nothing():
    bench = Bench({"prewarm": False})
    plan = make_plan()
    bench.register(plan)
    bench.finish()
    assert prewarm_counts(bench)["num_requests"] == 0
    assert call(bench, plan, "first") == 0
    assert call(bench, plan, "second", row=1, start=2000) == 96


@pytest.mark.parametrize(
    "plan",
    [
        make_plan(num_calls=1),
        make_plan(head=HEAD[:40]),
        make_plan(model="adapter"),
        make_plan(head=[(1 << 31) - 1] * 96),
    ],
    ids=["one use", "short", "another model", "no token of the model"],
)
def test_what_would_not_pay_or_not_be_safe_is_not_prewarmed(plan):
    bench = Bench()
    bench.scheduler.prewarmer._vocab_size = 1 << 30
    bench.register(plan)
    assert prewarm_counts(bench)["num_requests"] == 0
    assert not bench.scheduler.has_unfinished_requests()


def test_registering_again_computes_nothing_anew():
    bench = Bench()
    plan = make_plan()
    for _ in range(2):
        bench.register(plan)
        bench.register(plan)
        bench.finish()
    assert prewarm_counts(bench)["num_requests"] == 1


def test_a_lease_outlives_ordinary_traffic_and_yields_to_it_before_a_preemption():
    bench = Bench(num_blocks=24)
    plan = make_plan()
    bench.register(plan)
    bench.finish()
    for number in range(6):
        bench.add(f"o{number}", tokens(5000 + 1000 * number, 160))
        bench.finish()
    assert call(bench, plan, "mine") == 96
    bench.add("huge", tokens(90_000, 350))
    bench.finish()
    assert bench.ended["huge"].num_preemptions == 0
    assert index_of(bench).stats()["num_leased_nodes"] < 6
    index_of(bench).check_integrity()


def test_a_lease_ends_some_time_after_its_last_use():
    bench = Bench({"lease_s": 5.0})
    plan = make_plan()
    bench.register(plan)
    bench.finish()
    bench.clock.advance_to(bench.clock.now() + 4)
    call(bench, plan, "renews")
    bench.clock.advance_to(bench.clock.now() + 4)
    bench.add("x", tokens(7000, 8))
    bench.finish()
    assert index_of(bench).stats()["num_leased_nodes"] == 6
    bench.clock.advance_to(bench.clock.now() + 6)
    bench.add("y", tokens(8000, 8))
    bench.finish()
    assert index_of(bench).stats()["num_leased_nodes"] == 0


def test_a_plan_that_comes_after_a_long_pause_gets_whole_leases():
    bench = Bench({"lease_s": 5.0})
    bench.clock.advance_to(bench.clock.now() + 1_000)
    bench.register(make_plan())
    bench.finish()
    assert index_of(bench).stats()["num_leased_nodes"] == 6


def test_leases_end_with_the_plan_and_with_its_last_run():
    bench = Bench()
    plan = make_plan()
    digest = bench.register(plan)
    bench.finish()
    call(bench, plan, "one", row=0)
    assert index_of(bench).stats()["num_leased_nodes"] == 6
    call(bench, plan, "two", row=1)
    assert index_of(bench).stats()["num_leased_nodes"] == 0
    bench.register(plan)
    assert index_of(bench).stats()["num_leased_nodes"] == 6
    bench.scheduler.helium_rpc("drop_plan", digest)
    assert index_of(bench).stats()["num_leased_nodes"] == 0
    index_of(bench).check_integrity()


def test_a_dropped_plan_takes_its_prewarm_requests_along():
    bench = Bench()
    digest = bench.register(make_plan())
    bench.scheduler.helium_rpc("drop_plan", digest)
    assert not bench.scheduler.has_unfinished_requests()


def test_leases_stay_within_their_budget():
    bench = Bench({"lease_share": 0.01})
    bench.register(make_plan())
    bench.finish()
    assert prewarm_counts(bench)["num_requests"] == 0


def test_a_plans_prefix_is_prewarmed_for_its_tenant_alone():
    for salt, other in ((None, "x"), ("x", None), ("x", "y")):
        bench = Bench()
        plan = make_plan(cache_salt=salt)
        bench.register(plan)
        bench.finish()
        assert call(bench, plan, "other", row=0, salt=other) == 0
        assert call(bench, plan, "own", row=1, salt=salt) == 96


def test_an_adapters_prefixes_are_prewarmed_when_its_first_call_comes():
    bench = Bench()
    adapter = LoRARequest("adapter", 1, "/adapter")
    plan = make_plan(model="adapter", num_calls=3)
    bench.register(plan)
    add = bench.scheduler.add_request

    def with_adapter(request):
        if request.lora_request is None and request.request_id.startswith("lora"):
            request.lora_request = adapter
        add(request)

    bench.scheduler.add_request = with_adapter
    assert prewarm_counts(bench)["num_requests"] == 0
    call(bench, plan, "lora-1")
    assert prewarm_counts(bench)["num_requests"] == 1
    assert call(bench, plan, "lora-2", row=1, start=2000) == 96
    assert call(bench, plan, "base", row=2, start=3000) == 0
    assert prewarm_counts(bench)["num_requests"] == 1
