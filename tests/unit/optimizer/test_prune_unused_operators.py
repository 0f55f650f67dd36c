from helium import graphs, ops
from helium.optimizer.rules.prune_unused_operators import PruneUnusedOperators
from helium.plan.logical_plan import LogicalPlan
from helium.plan.operators import Format, Input, Llm, Message, Output, Reference, Sampling
from helium.plan.text import text
from tests.unit.optimizer.golden import check_golden


def ask(name, read, **fields):
    return Llm(name, messages=(Message("user", text(Reference(read))),), **fields)


def test_golden():
    unused = LogicalPlan(
        (
            Input("q", column="q"),
            Input("never_read", column="other"),
            ask("draft", "q"),
            ask("critic", "draft", sampling=Sampling(temperature=1.0)),
            Format("note", text=text("see ", Reference("critic"))),
            Output("answer", source="draft"),
        )
    )
    history = LogicalPlan(
        (
            Input("q", column="q"),
            ask("first", "q"),
            Llm("second", messages=(Message("user", text("Go on.")),), history="first"),
            Output("answer", source="second"),
        )
    )
    cases = {
        "a chain that ends nowhere goes as a whole, random calls included": unused,
        "a history is needed": history,
    }
    rule = PruneUnusedOperators()
    check_golden(
        "prune_unused_operators",
        {claim: (plan, rule.apply(plan).plan) for claim, plan in cases.items()},
    )


def test_a_plan_without_unused_operators_is_returned_itself():
    plan = graphs.build([ops.placeholder("q")]).plan
    assert PruneUnusedOperators().apply(plan).plan is plan


def test_what_only_one_of_many_outputs_needs_stays():
    nodes = [ops.llm([ops.Msg("user", str(index))], name=f"n{index}") for index in range(17)]
    plan = graphs.build(nodes).plan
    assert len(PruneUnusedOperators().apply(plan).plan.llm_operators) == 17
