"""What a plan tells the prefix index: tags per template node and row, counted down per call."""

from __future__ import annotations

from helium.protocol import MAX_INT, EnginePlan, PlanOperator, TemplateNode, WorkflowContext
from vllm_helium.prefix_cache.index import PrefixIndex
from vllm_helium.prefix_cache.plan_uses import PlanUsesRegistry

SYSTEM, QUESTION, ROLE = 1, 2, 3


def make_plan(rows=2, expert_rank=1, critic_rank=5):
    return EnginePlan(
        version=1,
        workflow="test",
        operators=(
            PlanOperator(name="critic", rank=critic_rank, num_calls=rows, template=(1, 2, 3)),
            PlanOperator(name="expert", rank=expert_rank, num_calls=rows, template=(1, 2)),
        ),
        templates=(
            TemplateNode(parent=0),
            TemplateNode(parent=0, num_tokens=3, token_ids=(1, 2, 3)),
            TemplateNode(parent=1, num_tokens=5),
            TemplateNode(parent=2, num_tokens=2, token_ids=(8, 9)),
        ),
    )


def make_registry(plan, max_runs=4):
    index = PrefixIndex(16, 4, max_protected_blocks=16, max_leased_blocks=4)
    registry = PlanUsesRegistry(index, max_runs)
    registry.register(plan.digest(), plan)
    return index, registry


def call(plan, operator, row=0, run="run", lengths=None):
    if lengths is None:
        lengths = (3, 5) if operator == "expert" else (3, 5, 2)
    return WorkflowContext(
        plan=plan.digest(), run=run, operator=operator, row=row, segment_lengths=lengths
    )


def test_segments_follow_the_template_and_end_with_the_output():
    plan = make_plan()
    _, registry = make_registry(plan)
    context = call(plan, "critic", row=1)
    uses = registry.run(context)
    segments, num_static_tokens = uses.segments(context)
    assert [end for end, _ in segments[:-1]] == [3, 8, 10]
    assert num_static_tokens == 3
    system, question, role, output = (tag for _, tag in segments)
    assert len({system, question, role}) == 3 and output == role


def test_static_nodes_are_shared_by_rows_and_what_follows_a_hole_is_not():
    plan = make_plan()
    _, registry = make_registry(plan)
    uses = registry.run(call(plan, "critic"))
    assert uses.tag_of(SYSTEM, 0) == uses.tag_of(SYSTEM, 1)
    assert uses.tag_of(QUESTION, 0) != uses.tag_of(QUESTION, 1)
    assert uses.tag_of(ROLE, 0) != uses.tag_of(ROLE, 1)


def test_uses_count_down_as_calls_end_and_the_next_use_moves_on():
    plan = make_plan()
    index, registry = make_registry(plan)
    uses = registry.run(call(plan, "expert"))
    system, question = uses.tag_of(SYSTEM, 0), uses.tag_of(QUESTION, 0)
    assert (index.uses(system), index.uses(question)) == ((4, 1), (2, 1))
    registry.call_ended(call(plan, "expert"))
    assert (index.uses(system), index.uses(question)) == ((3, 1), (1, 5))
    registry.call_ended(call(plan, "expert", row=1))
    assert index.uses(system) == (2, 5)
    registry.call_ended(call(plan, "critic"))
    assert (index.uses(system), index.uses(question)) == ((1, 5), (0, 0))


def test_a_call_that_ended_before_its_row_was_seen_is_not_expected_again():
    plan = make_plan()
    index, registry = make_registry(plan)
    registry.call_ended(call(plan, "expert", row=1))
    assert index.uses(registry.run(call(plan, "critic")).tag_of(QUESTION, 1)) == (1, 5)


def test_the_last_call_ends_the_run_and_a_late_one_does_not_begin_it_anew():
    plan = make_plan(rows=1)
    index, registry = make_registry(plan)
    uses = registry.run(call(plan, "expert"))
    uses.segments(call(plan, "expert"))
    for operator in ("expert", "critic"):
        registry.call_ended(call(plan, operator))
    assert uses.is_closed and index.stats()["num_tags"] == 0
    assert registry.run(call(plan, "expert")) is None
    assert registry.describe() == {"num_plans": 1, "num_runs": 0}


def test_runs_of_one_plan_count_apart():
    plan = make_plan()
    index, registry = make_registry(plan)
    first, second = (registry.run(call(plan, "expert", run=run)) for run in ("a", "b"))
    registry.call_ended(call(plan, "expert", run="a"))
    assert index.uses(first.tag_of(SYSTEM, 0)) == (3, 1)
    assert index.uses(second.tag_of(SYSTEM, 0)) == (4, 1)


def test_the_oldest_run_goes_beyond_the_bound():
    plan = make_plan()
    _, registry = make_registry(plan, max_runs=2)
    runs = [registry.run(call(plan, "expert", run=str(run))) for run in range(3)]
    assert [uses.is_closed for uses in runs] == [True, False, False]


def test_plans_registered_longest_ago_go_beyond_the_bound():
    plans = [make_plan(rows=rows) for rows in (1, 2, 3)]
    _, registry = make_registry(plans[0], max_runs=2)
    uses = registry.run(call(plans[0], "expert"))
    for plan in plans[1:]:
        registry.register(plan.digest(), plan)
    assert uses.is_closed
    assert registry.run(call(plans[0], "expert")) is None
    assert registry.run(call(plans[2], "expert")) is not None


def test_dropping_a_plan_closes_its_runs():
    plan = make_plan()
    _, registry = make_registry(plan)
    uses = registry.run(call(plan, "expert"))
    registry.drop(plan.digest())
    registry.drop(plan.digest())
    assert uses.is_closed and registry.run(call(plan, "expert")) is None


def test_a_hint_that_does_not_fit_is_ordinary_traffic():
    plan = make_plan()
    _, registry = make_registry(plan)
    uses = registry.run(call(plan, "expert"))
    assert uses.segments(call(plan, "expert", lengths=(3,))) == ([], 0)
    assert uses.segments(call(plan, "stranger", lengths=(3, 5))) == ([], 0)
    registry.call_ended(call(plan, "stranger"))
    assert registry.run(None) is None


def test_the_output_belongs_to_the_one_node_a_later_call_reads_it_in():
    plan = EnginePlan(
        version=1,
        workflow="test",
        operators=(
            PlanOperator(name="draft", rank=1, template=(1,)),
            PlanOperator(name="revise", rank=2, template=(1, 2)),
        ),
        templates=(
            TemplateNode(parent=0),
            TemplateNode(parent=0, num_tokens=2, token_ids=(1, 2)),
            TemplateNode(parent=1, num_tokens=9),
        ),
    )
    index, registry = make_registry(plan)
    context = call(plan, "draft", lengths=(2,))
    uses = registry.run(context)
    segments, _ = uses.segments(context)
    assert segments[-1][1] == uses.tag_of(2, 0)
    assert index.uses(segments[-1][1]) == (1, 2)


def test_the_largest_numbers_a_client_may_send_are_taken():
    plan = make_plan(rows=MAX_INT, expert_rank=MAX_INT, critic_rank=MAX_INT)
    index, registry = make_registry(plan)
    for row in (0, MAX_INT - 1, MAX_INT):
        context = call(plan, "expert", row=row)
        segments, _ = registry.run(context).segments(context)
        assert len(segments) == 3
        registry.call_ended(context)
    tag = registry.run(context).tag_of(SYSTEM, MAX_INT)
    assert index.uses(tag) == ((1 << 31) - 1, (1 << 32) - 1)
