from helium import graphs, ops
from helium.optimizer.rules.inline_formats import InlineFormats
from helium.plan.logical_plan import LogicalPlan
from helium.plan.operators import Format, Input, Output, Reference
from helium.plan.text import text
from tests.unit.optimizer.golden import check_golden


def test_golden():
    question = ops.placeholder("q")
    inner = ops.fmt("Question: {}", question, name="inner")
    outer = ops.fmt("{}\nBe brief.", inner, name="outer")
    nested = graphs.build({"answer": ops.llm([ops.Msg("user", [outer, "\nThanks."])])}).plan
    alias = ops.fmt("{}", question, name="alias")
    aliases = graphs.build(
        {
            "row": alias[0:1],
            "both": ops.concat([alias, alias], name="both"),
            "parsed": ops.apply("parse", alias, name="parsed"),
            "plain": alias,
        }
    ).plan
    draws = ops.llm([ops.Msg("user", question)], n=2, temperature=1.0, name="draws")
    choices = graphs.build(
        {"first": draws.choice(0), "used": ops.llm([ops.Msg("user", draws.choice(1))])}
    ).plan
    completion = graphs.build({"out": ops.llm(prompt=inner, name="complete")}).plan
    cases = {
        "nested formats are written out where a prompt reads them": nested,
        "a format of one hole is its producer for every reader": aliases,
        "one choice of several is not the producer": choices,
        "completions are prompts, too": completion,
    }
    check_golden(
        "inline_formats",
        {claim: (plan, InlineFormats().apply(plan).plan) for claim, plan in cases.items()},
    )


def test_formats_that_double_stay_bounded():
    operators = [Input("q", column="q")]
    for index in range(200):
        last = Reference(operators[-1].name)
        operators.append(Format(f"f{index}", text=text(last, "x", last)))
    operators.append(Output("o", source="f199"))
    plan = LogicalPlan(tuple(operators))
    inlined = InlineFormats().apply(plan).plan
    inlined.validate()
    assert len(inlined.to_json()) < 4 << 20
    assert inlined is not plan


def test_no_formats_returns_the_plan_itself():
    plan = graphs.build([ops.llm([ops.Msg("user", ops.placeholder("q"))])]).plan
    assert InlineFormats().apply(plan).plan is plan
