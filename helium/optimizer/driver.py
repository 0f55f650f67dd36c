"""The order of the rules. Every rule is switchable, timed, and its plan is checked after it ran."""

from __future__ import annotations

import time
from collections.abc import Mapping

import msgspec

from helium.errors import ConfigError, RuleError, WorkflowError
from helium.optimizer.rule import BatchRule, PlanRule
from helium.optimizer.rules.eliminate_common_subgraphs import EliminateCommonSubgraphs
from helium.optimizer.rules.fold_constants import FoldConstants
from helium.optimizer.rules.inline_formats import InlineFormats
from helium.optimizer.rules.merge_equal_rows import MergeEqualRows
from helium.optimizer.rules.prune_unused_operators import PruneUnusedOperators
from helium.optimizer.rules.substitute_cached import PromptCache, SubstituteCached
from helium.plan.compiled_plan import CompiledPlan
from helium.plan.logical_plan import LogicalPlan


class Switches(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which rules run; one switch per rule, named after it."""

    prune_unused_operators: bool = True
    fold_constants: bool = True
    inline_formats: bool = True
    eliminate_common_subgraphs: bool = True
    merge_equal_rows: bool = True
    substitute_cached: bool = True

    def without(self, *rules: str) -> Switches:
        """Returns the switches with these rules off.

        Raises:
            ConfigError: A rule is unknown.
        """
        unknown = [rule for rule in rules if rule not in self.__struct_fields__]
        if unknown:
            raise ConfigError(f"no rules {unknown}; available: {list(self.__struct_fields__)}")
        return msgspec.structs.replace(self, **dict.fromkeys(rules, False))


ALL_ON = Switches()


class Pass(msgspec.Struct, frozen=True):
    """One run of one rule.

    Attributes:
        elapsed_ms: Time of the rule itself, without the check after it.
        num_operators: Operators of the plan afterwards.
        num_llm_operators: LLM operators among them.
        num_calls: LLM calls still to be made, for rules over a batch; ``None`` for the others.
    """

    rule: str
    elapsed_ms: float
    num_operators: int
    num_llm_operators: int
    num_calls: int | None = None


class Optimization(msgspec.Struct, frozen=True):
    """An optimized plan and how it came about.

    Attributes:
        replaced: Operators whose work another one does now: original name -> name in ``plan``.
    """

    plan: LogicalPlan
    passes: tuple[Pass, ...]
    replaced: dict[str, str]


class BatchOptimization(msgspec.Struct, frozen=True):
    """An optimized binding and how it came about; ``replaced`` as in ``Optimization``."""

    compiled: CompiledPlan
    passes: tuple[Pass, ...]
    replaced: dict[str, str]


def optimize_plan(plan: LogicalPlan, switches: Switches = ALL_ON) -> Optimization:
    """Applies the rules that are right for every batch to a valid plan.

    Outputs keep their keys, their order and the value of every row.

    Raises:
        RuleError: A rule made an invalid plan; names the rule.
    """
    driver = _PlanDriver(plan, switches)
    # First, so that no rule works on what nobody needs.
    driver.run("prune_unused_operators", PruneUnusedOperators())
    # Before inlining: formats of constants are literals then.
    driver.run("fold_constants", FoldConstants())
    # Before merging: two spellings of one prompt are equal texts then.
    driver.run("inline_formats", InlineFormats())
    driver.run("eliminate_common_subgraphs", EliminateCommonSubgraphs())
    # Last: inlining leaves formats and data that nothing reads.
    driver.run("prune_unused_operators", PruneUnusedOperators())
    return Optimization(driver.plan, tuple(driver.passes), driver.replaced)


def optimize(
    compiled: CompiledPlan, switches: Switches = ALL_ON, cache: PromptCache | None = None
) -> BatchOptimization:
    """Applies every rule to a plan with its batch; runs nothing.

    Args:
        cache: The tenant's prompt cache; without one, ``substitute_cached`` is skipped.

    Raises:
        RuleError: A rule made an invalid plan; names the rule.
        CacheError: The cache's answer does not fit the question.
    """
    logical = optimize_plan(compiled.plan, switches)
    if logical.plan is not compiled.plan:
        compiled = compiled.with_plan(logical.plan)
    driver = _BatchDriver(compiled, switches, list(logical.passes))
    # Before the cache is asked: one lookup per distinct call.
    driver.run("merge_equal_rows", MergeEqualRows())
    if cache is not None:
        driver.run("substitute_cached", SubstituteCached(cache))
        # What only cached operators needed.
        driver.run("prune_unused_operators", _OnBatch(PruneUnusedOperators()))
    return BatchOptimization(driver.compiled, tuple(driver.passes), logical.replaced)


class _PlanDriver:
    def __init__(self, plan: LogicalPlan, switches: Switches) -> None:
        self.plan = plan
        self.passes: list[Pass] = []
        self.replaced: dict[str, str] = {}
        self._switches = switches

    def run(self, name: str, rule: PlanRule) -> None:
        if not getattr(self._switches, name):
            return
        start = time.perf_counter()
        rewrite = rule.apply(self.plan)
        elapsed_ms = (time.perf_counter() - start) * 1e3
        _verify(name, self.plan, rewrite.plan)
        self.replaced = _chain(self.replaced, rewrite.replaced)
        self.plan = rewrite.plan
        self.passes.append(
            Pass(name, elapsed_ms, len(self.plan.operators), len(self.plan.llm_operators))
        )


class _BatchDriver:
    def __init__(self, compiled: CompiledPlan, switches: Switches, passes: list[Pass]) -> None:
        self.compiled = compiled
        self.passes = passes
        self._switches = switches

    def run(self, name: str, rule: BatchRule) -> None:
        if not getattr(self._switches, name):
            return
        start = time.perf_counter()
        compiled = rule.apply(self.compiled)
        elapsed_ms = (time.perf_counter() - start) * 1e3
        _verify(name, self.compiled.plan, compiled.plan)
        self.compiled = compiled
        plan = compiled.plan
        num_calls = sum(len(compiled.calls(operator.name)) for operator in plan.llm_operators)
        self.passes.append(
            Pass(name, elapsed_ms, len(plan.operators), len(plan.llm_operators), num_calls)
        )


class _OnBatch:
    """A plan rule applied to a bound plan."""

    def __init__(self, rule: PlanRule) -> None:
        self._rule = rule

    def apply(self, compiled: CompiledPlan) -> CompiledPlan:
        plan = self._rule.apply(compiled.plan).plan
        return compiled if plan is compiled.plan else compiled.with_plan(plan)


def _verify(name: str, before: LogicalPlan, after: LogicalPlan) -> None:
    if after is before:
        return
    try:
        after.validate()
    except WorkflowError as error:
        raise RuleError(
            f"rule {name!r} made an invalid plan: {error}; switch it off with "
            f"Switches().without({name!r}) and report it"
        ) from error
    keys_before = [output.key for output in before.outputs]
    keys_after = [output.key for output in after.outputs]
    if keys_after != keys_before:
        raise RuleError(
            f"rule {name!r} changed the results: expected the keys {keys_before}, got "
            f"{keys_after}; switch it off with Switches().without({name!r}) and report it"
        )


def _chain(earlier: Mapping[str, str], later: Mapping[str, str]) -> dict[str, str]:
    """Returns where names end up when a second replacement follows a first."""
    return {**{old: later.get(new, new) for old, new in earlier.items()}, **later}
