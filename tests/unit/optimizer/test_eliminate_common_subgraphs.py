import pytest

from helium import graphs, ops
from helium.optimizer.rules.eliminate_common_subgraphs import EliminateCommonSubgraphs
from helium.plan.logical_plan import LogicalPlan
from helium.plan.operators import Data, Llm, Message, Output, Sampling
from helium.plan.text import text
from tests.unit.optimizer.golden import check_golden


def pair(**options):
    """Two calls with equal prompts; the options of the second may differ."""
    first = options.pop("first", {})
    question = ops.placeholder("q")
    message = [ops.Msg("user", question)]
    one = ops.llm(message, name="one", **{**options, **first})
    two = ops.llm(message, name="two", **options)
    return graphs.build({"a": one, "b": two}).plan


def num_left(plan):
    return len(EliminateCommonSubgraphs().apply(plan).plan.llm_operators)


def test_golden():
    question = ops.placeholder("q")
    again = ops.placeholder("q")
    chain = [
        ops.llm([ops.Msg("user", "Go on.")], history=ops.llm([ops.Msg("user", node)]))
        for node in (question, again)
    ]
    draw = [ops.llm([ops.Msg("user", question)], temperature=1.0) for _ in range(2)]
    after_draw = [ops.llm([ops.Msg("user", node)]) for node in (*draw, draw[0])]
    slices = [ops.slice(question, *bounds) for bounds in ((None, 5), (0, 5, 1), (5,))]
    cases = {
        "whole conversations merge, from the input up": graphs.build(chain).plan,
        "a random call stays two draws, what reads one draw twice merges": graphs.build(
            after_draw
        ).plan,
        "spellings of one slice merge": graphs.build(slices).plan,
        "options that differ keep calls apart": pair(first={"stop": "x"}),
    }
    rule = EliminateCommonSubgraphs()
    check_golden(
        "eliminate_common_subgraphs",
        {claim: (plan, rule.apply(plan).plan) for claim, plan in cases.items()},
    )


@pytest.mark.parametrize(
    "options",
    [
        {"stop": ["x"]},
        {"max_tokens": 5},
        {"temperature": 1.0, "seed": 1},
        {"temperature": 1.0, "seed": 1, "n": 2},
        {"model": "adapter"},
        {"structured": {"choice": ["yes", "no"]}},
    ],
    ids=str,
)
def test_equal_options_merge_and_different_ones_do_not(options):
    assert num_left(pair(**options)) == 1
    assert num_left(pair(first=dict.fromkeys(options) | _default(options), **options)) == 2


def _default(options):
    sampling = Sampling()
    return {name: getattr(sampling, name, None) for name in options}


@pytest.mark.parametrize("options", [{"n": 1}, {"n": 3}], ids=str)
def test_unseeded_calls_never_merge(options):
    assert num_left(pair(temperature=0.7, **options)) == 2


def test_seeded_calls_with_different_n_or_seed_do_not_merge():
    assert num_left(pair(temperature=0.7, seed=1, n=2, first={"n": 3})) == 2
    assert num_left(pair(temperature=0.7, seed=1, first={"seed": 2})) == 2


def test_greedy_calls_merge_whatever_cannot_matter():
    first = {"seed": 7, "top_p": 0.5, "top_k": 3, "min_p": 0.1}
    assert num_left(pair(first=first)) == 1
    assert num_left(pair(first={"repetition_penalty": 1.1})) == 2


def test_order_of_a_schema_keeps_calls_apart():
    schema = {"type": "object", "properties": {"a": {}, "b": {}}}
    swapped = {"type": "object", "properties": {"b": {}, "a": {}}}
    assert schema == swapped
    assert num_left(pair(structured={"json": schema}, first={"structured": {"json": swapped}})) == 2


def test_a_scalar_and_a_batch_of_one_do_not_merge():
    plan = graphs.build({"a": ops.data("x"), "b": ops.data(["x"])}).plan
    result = EliminateCommonSubgraphs().apply(plan).plan
    assert [op.is_scalar for op in result.operators if isinstance(op, Data)] == [True, False]


def test_a_conversation_and_its_repetition_merge_only_with_equal_history():
    ask = [Llm(name, messages=(Message("user", text(name)),)) for name in ("x", "y")]
    go_on = (Message("user", text("Go on.")),)
    replies = [Llm(f"{op.name}2", messages=go_on, history=op.name) for op in ask]
    outputs = [Output(f"out_{op.name}", source=op.name) for op in replies]
    assert num_left(LogicalPlan((*ask, *replies, *outputs))) == 4


def test_replaced_names_the_survivor():
    assert EliminateCommonSubgraphs().apply(pair()).replaced == {"two": "one"}


def test_nothing_in_common_returns_the_plan_itself():
    plan = pair(temperature=1.0)
    assert EliminateCommonSubgraphs().apply(plan).plan is plan
