from helium import graphs, ops
from helium.optimizer.rules.fold_constants import FoldConstants
from helium.plan.logical_plan import LogicalPlan
from helium.plan.operators import Data, Format, Output, Reference
from helium.plan.text import text
from tests.unit.optimizer.golden import check_golden


def test_golden():
    tone = ops.data("brief", name="tone")
    question = ops.placeholder("q")
    rule = ops.fmt("Be {}.", tone, name="rule")
    prompt = graphs.build({"answer": ops.llm([ops.Msg("user", [rule, " ", question])])}).plan
    letters = ops.data(["a", "b", "c"], name="letters")
    rows = graphs.build(
        {
            "some": ops.slice(letters, 1, name="tail"),
            "one_row": ops.slice(tone, 0, 1, name="row"),
            "more": ops.concat([letters, tone], name="joined"),
            "per_row": ops.fmt("{} {}", tone, letters, name="kept"),
        }
    ).plan
    function = graphs.build({"out": ops.apply("parse", tone, name="parsed")}).plan
    empty = graphs.build({"out": ops.fmt("", name="empty")}).plan
    cases = {
        "scalars become static text, so that equal prompts look equal": prompt,
        "slices and concatenations of data become data, one value of a scalar a row": rows,
        "functions are not run while planning": function,
        "an empty format is the empty text": empty,
    }
    check_golden(
        "fold_constants",
        {claim: (plan, FoldConstants().apply(plan).plan) for claim, plan in cases.items()},
    )


def test_a_slice_of_a_scalar_is_not_a_scalar():
    sliced = ops.data("x", name="x")[0:1]
    plan = FoldConstants().apply(graphs.build({"out": sliced}).plan).plan
    assert not plan.by_name["slice"].is_scalar


def test_copies_stop_where_the_plan_would_grow_out_of_bounds():
    big = "x" * 2_000_000
    operators = [Data("big", values=(big,), is_scalar=True)]
    operators += [Format(f"f{i}", text=text(Reference("big"), str(i))) for i in range(100)]
    operators += [Output(f"o{i}", source=f"f{i}") for i in range(100)]
    folded = FoldConstants().apply(LogicalPlan(tuple(operators))).plan
    folded.validate()
    num_copies = sum(isinstance(folded.by_name[f"f{i}"], Data) for i in range(100))
    assert 1 <= num_copies <= 8


def test_nothing_constant_returns_the_plan_itself():
    plan = graphs.build([ops.fmt("{}!", ops.placeholder("q"))]).plan
    assert FoldConstants().apply(plan).plan is plan
