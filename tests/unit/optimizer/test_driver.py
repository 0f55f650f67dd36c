import importlib
import inspect
from pathlib import Path

import pytest

from helium import graphs, ops
from helium.errors import ConfigError, RuleError
from helium.optimizer import driver, rules
from helium.optimizer.driver import Switches, optimize, optimize_plan
from helium.optimizer.rule import Rewrite
from helium.optimizer.rules.substitute_cached import DictPromptCache
from helium.plan.compiled_plan import bind
from helium.plan.logical_plan import LogicalPlan

RULES = sorted(path.stem for path in Path(rules.__file__).parent.glob("[a-z]*.py"))
GOLDEN = Path(__file__).parents[2] / "golden" / "optimizer"


def plan_with_twins():
    question = ops.placeholder("q")
    twins = [ops.llm([ops.Msg("user", ops.fmt("Q: {}", question))]) for _ in range(2)]
    return graphs.build({"a": twins[0], "b": twins[1]})


def test_every_rule_has_a_switch_a_class_a_test_and_a_golden_file():
    assert sorted(Switches.__struct_fields__) == RULES
    for rule in RULES:
        module = importlib.import_module(f"helium.optimizer.rules.{rule}")
        class_name = "".join(word.capitalize() for word in rule.split("_"))
        assert inspect.isclass(getattr(module, class_name))
        assert Path(__file__).with_name(f"test_{rule}.py").exists()
        assert (GOLDEN / f"{rule}.txt").read_text()
        assert ">>>" in module.__doc__


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_that_is_off_does_not_run(rule):
    compiled = plan_with_twins().compile(q=["a"])
    on = optimize(compiled, Switches(), DictPromptCache())
    off = optimize(compiled, Switches().without(rule), DictPromptCache())
    assert rule in {each.rule for each in on.passes}
    assert rule not in {each.rule for each in off.passes}


def test_all_rules_off_return_the_binding_itself():
    compiled = plan_with_twins().compile(q=["a"])
    optimization = optimize(compiled, Switches().without(*RULES))
    assert optimization.compiled is compiled
    assert optimization.passes == ()


def test_an_unknown_rule_cannot_be_switched_off():
    with pytest.raises(ConfigError, match=r"no rules \['inline'\].*inline_formats"):
        Switches().without("inline")


def test_passes_report_time_and_size():
    passes = optimize(plan_with_twins().compile(q=["a", "a"])).passes
    by_rule = {each.rule: each for each in passes}
    assert by_rule["inline_formats"].num_llm_operators == 2
    assert by_rule["eliminate_common_subgraphs"].num_llm_operators == 1
    assert by_rule["merge_equal_rows"].num_calls == 1
    assert all(each.elapsed_ms >= 0 for each in passes)


def test_inlining_makes_two_spellings_of_a_prompt_merge():
    question = ops.placeholder("q")
    spellings = [["Q: ", question], ops.fmt("Q: {}", question)]
    plan = graphs.build([ops.llm([ops.Msg("user", text)]) for text in spellings]).plan
    assert len(optimize_plan(plan).plan.llm_operators) == 1
    assert len(optimize_plan(plan, Switches().without("inline_formats")).plan.llm_operators) == 2


def test_optimized_binding_keeps_only_the_columns_it_needs():
    x, y = ops.placeholder("x"), ops.placeholder("y")
    plan = LogicalPlan((*graphs.build([x]).plan.operators, *graphs.build([y]).plan.operators))
    unused = LogicalPlan(tuple(op for op in plan.operators if op.name != "y.output"))
    assert optimize(bind(unused, {"x": ["a"], "y": ["b"]})).compiled.columns == {"x": ("a",)}


def test_an_invalid_plan_names_the_rule(monkeypatch):
    class DropFirst:
        def apply(self, plan):
            return Rewrite(LogicalPlan(plan.operators[1:]))

    monkeypatch.setattr(driver, "FoldConstants", DropFirst)
    with pytest.raises(RuleError, match="rule 'fold_constants' made an invalid plan: operator"):
        optimize_plan(plan_with_twins().plan)


def test_a_lost_result_names_the_rule(monkeypatch):
    class DropLast:
        def apply(self, plan):
            return Rewrite(LogicalPlan(plan.operators[:-1]))

    monkeypatch.setattr(driver, "InlineFormats", DropLast)
    with pytest.raises(RuleError, match=r"'inline_formats' changed the results.*\['a', 'b'\]"):
        optimize_plan(plan_with_twins().plan)


def test_replaced_names_lead_to_operators_of_the_plan():
    optimization = optimize_plan(plan_with_twins().plan)
    assert optimization.replaced == {"llm_2": "llm", "format_2": "format"}
