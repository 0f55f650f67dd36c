"""What EXPLAIN says, as plain data; the printers only lay it out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import msgspec

from helium.errors import PlanError
from helium.plan.logical_plan import LogicalPlan
from helium.planner.workflow_plan import WorkflowPlan
from helium.templates.rendering import VariableRun


class RulePass(Protocol):
    """One run of an optimizer rule, as the optimizer's driver reports it."""

    @property
    def rule(self) -> str: ...
    @property
    def elapsed_ms(self) -> float: ...
    @property
    def num_operators(self) -> int: ...
    @property
    def num_llm_operators(self) -> int: ...
    @property
    def num_calls(self) -> int | None: ...


class Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a run measured of one operator, summed over its calls.

    Attributes:
        prefill_tokens: Prompt tokens computed.
        cached_tokens: Prompt tokens found in the cache.
        output_tokens: Tokens generated.
        queue_ms: Time calls waited in the engine before their first step.
        start_ms, end_ms: When its first call was sent and its last one ended, in the run's time.
        misses: Why prompt tokens were not found in the cache, reason -> tokens.
    """

    num_calls: int
    prefill_tokens: int
    cached_tokens: int
    output_tokens: int
    queue_ms: float
    start_ms: float = 0.0
    end_ms: float = 0.0
    misses: dict[str, int] = {}


class Run(Protocol):
    """A run that knows its figures: a ``RunTrace``, or a ``RunResult``, which has no times."""

    def measured(self) -> Mapping[str, Measured]: ...


class RuleRow(msgspec.Struct, frozen=True):
    """The plan after one rule; the first row, without a name, is the plan as written."""

    rule: str
    num_operators: int
    num_llm_operators: int
    num_calls: int | None
    elapsed_ms: float | None


class TemplateRow(msgspec.Struct, frozen=True):
    """One node of the templated radix tree, in preorder.

    Attributes:
        parent: Index of the parent's row; -1 below the root.
        kind: ``static``, ``value``, or ``join`` (static text that depends on its neighbour).
        value: Which value, for ``value``.
        num_tokens: Exact for ``static``, expected elsewhere.
        num_uses: Calls expected to read it.
        operators: Operators whose prompt ends here.
    """

    parent: int
    kind: str
    value: str | None
    num_tokens: float
    num_uses: int
    operators: tuple[str, ...]


class ScheduleRow(msgspec.Struct, frozen=True):
    """One operator in the schedule of the first slice; see ``Prediction`` for the units.

    Attributes:
        sequence: Number of its sequence on this engine; equal numbers run query by query.
        after: The operator whose end held its start, ``None`` if nothing did.
    """

    engine: int
    sequence: int
    rank: int
    operator: str
    num_calls: int
    prefill_tokens: float
    cached_tokens: float
    output_tokens: float
    start: float
    end: float
    delay: float
    after: str | None
    is_critical: bool
    reads: tuple[str, ...]
    measured: Measured | None


class PrefixRow(msgspec.Struct, frozen=True):
    """A static prefix to prewarm on an engine; ``operators`` start with it."""

    engine: int
    num_tokens: int
    num_uses: int
    operators: tuple[str, ...]


class Report(msgspec.Struct, frozen=True):
    """A plan, explained. ``makespan`` and all times are in ``unit``.

    ``has_left_over`` says that rows which the equal slices leave over are placed operator by
    operator; ``schedule`` shows the first slice, and of the rest only operators with no other rows.
    """

    workflow: str
    policy: str
    num_engines: int
    num_slices: int
    has_left_over: bool
    is_by_call: bool
    num_calls: int
    makespan: float
    unit: str
    rules: tuple[RuleRow, ...]
    templates: tuple[TemplateRow, ...]
    prefixes: tuple[PrefixRow, ...]
    schedule: tuple[ScheduleRow, ...]
    critical_path: tuple[str, ...]
    is_measured: bool
    measured_path: tuple[str, ...] = ()

    def to_builtins(self) -> dict[str, Any]:
        """Returns the report as plain dicts and lists."""
        report: dict[str, Any] = msgspec.to_builtins(self)
        return report


def build_report(
    plan: WorkflowPlan,
    *,
    passes: Iterable[RulePass] = (),
    original: LogicalPlan | None = None,
    analyze: Mapping[str, Measured] | Run | None = None,
    show_times: bool = True,
) -> Report:
    """Gathers what EXPLAIN says.

    Args:
        passes: The optimizer's passes over this workflow.
        original: The plan before them.
        analyze: Measured figures by operator, or the run that measured them.
        show_times: Whether to report the rules' elapsed times, which differ from run to run.

    Raises:
        PlanError: ``analyze`` names an operator the plan does not have.
    """
    path: tuple[str, ...] = ()
    if analyze is not None and not isinstance(analyze, Mapping):
        if (critical_path := getattr(analyze, "critical_path", None)) is not None:
            path = critical_path(plan.compiled)
        analyze = analyze.measured()
    unknown = sorted(set(analyze or ()) - set(plan.predictions))
    if unknown:
        raise PlanError(
            f"explain: measured operators {unknown[:10]} are not in the plan; available: "
            f"{list(plan.predictions)[:20]}"
        )
    return Report(
        workflow=plan.workflow,
        policy=plan.policy,
        num_engines=plan.num_engines,
        num_slices=plan.num_slices,
        has_left_over=bool(plan.left_over),
        is_by_call=plan.is_by_call,
        num_calls=sum(prediction.num_calls for prediction in plan.predictions.values()),
        makespan=plan.makespan,
        unit=plan.unit,
        rules=_rules(passes, original, show_times),
        templates=_templates(plan),
        prefixes=_prefixes(plan),
        schedule=_schedule(plan, analyze or {}),
        critical_path=plan.critical_path,
        is_measured=analyze is not None,
        measured_path=path,
    )


def _rules(
    passes: Iterable[RulePass], original: LogicalPlan | None, show_times: bool
) -> tuple[RuleRow, ...]:
    rows = []
    if original is not None:
        rows.append(RuleRow("", len(original.operators), len(original.llm_operators), None, None))
    for done in passes:
        elapsed_ms = done.elapsed_ms if show_times else None
        rows.append(
            RuleRow(
                done.rule, done.num_operators, done.num_llm_operators, done.num_calls, elapsed_ms
            )
        )
    return tuple(rows)


def _templates(plan: WorkflowPlan) -> tuple[TemplateRow, ...]:
    lowering, tree = plan.lowering, plan.lowering.tree
    uses = tree.num_uses(lowering.num_calls.__getitem__)
    tokens = lowering.prefixes.tokens
    ends: dict[int, list[str]] = {}
    for operator, leaf in tree.leaves.items():
        ends.setdefault(leaf, []).append(operator)
    numbers = {0: -1}
    rows: list[TemplateRow] = []
    for node in tree.preorder():
        if not node:
            continue
        run, parent = tree.runs[node], tree.parents[node]
        kind, value = "static", None
        if isinstance(run, VariableRun):
            kind = "value" if run.value else "join"
            value = run.value.label.partition(":")[2] if run.value else None
        numbers[node] = len(rows)
        rows.append(
            TemplateRow(
                numbers[parent],
                kind,
                value,
                tokens[node] - tokens[parent],
                uses[node],
                tuple(ends.get(node, ())),
            )
        )
    return tuple(rows)


def _prefixes(plan: WorkflowPlan) -> tuple[PrefixRow, ...]:
    tree = plan.lowering.tree
    rows = []
    for engine in range(plan.num_engines // plan.num_slices):
        below: dict[int, list[str]] = {prefix.node: [] for prefix in plan.static_prefixes(engine)}
        for operator in plan.engine_calls(engine):
            for node in tree.path(tree.leaves[operator]):
                if node in below:
                    below[node].append(operator)
        rows += [
            PrefixRow(engine, prefix.num_tokens, prefix.num_uses, tuple(below[prefix.node]))
            for prefix in plan.static_prefixes(engine)
        ]
    return tuple(rows)


def _schedule(plan: WorkflowPlan, analyze: Mapping[str, Measured]) -> tuple[ScheduleRow, ...]:
    rows = []
    number, engine = -1, -1
    sliced = {name for sequence in plan.sequences for name in sequence.operators}
    rest = [
        s._replace(operators=tuple(n for n in s.operators if n not in sliced))
        for s in plan.left_over
    ]
    for sequence in (*plan.sequences, *rest):
        number = number + 1 if sequence.engine == engine else 0
        engine = sequence.engine
        for position, name in enumerate(sequence.operators):
            prediction = plan.predictions[name]
            rows.append(
                ScheduleRow(
                    engine=engine,
                    sequence=number,
                    rank=sequence.rank + position,
                    operator=name,
                    num_calls=prediction.num_calls,
                    prefill_tokens=prediction.prefill_tokens,
                    cached_tokens=prediction.cached_tokens,
                    output_tokens=prediction.output_tokens,
                    start=prediction.start,
                    end=prediction.end,
                    delay=prediction.delay,
                    after=prediction.blocker,
                    is_critical=prediction.is_critical,
                    reads=plan.lowering.reads[name],
                    measured=analyze.get(name),
                )
            )
    return tuple(rows)
