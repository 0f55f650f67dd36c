"""EXPLAIN: why a plan is what it is, and how a run compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from helium.errors import PlanError
from helium.explain.dot import to_dot
from helium.explain.html import to_html
from helium.explain.report import Measured, Report, RulePass, Run, build_report
from helium.explain.text import to_text
from helium.plan.logical_plan import LogicalPlan
from helium.planner.workflow_plan import WorkflowPlan

__all__ = ["FORMATS", "Measured", "Report", "RulePass", "build_report", "explain"]


def _to_json(report: Report) -> str:
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n"


FORMATS = {"text": to_text, "json": _to_json, "dot": to_dot, "html": to_html}


def explain(
    plan: WorkflowPlan,
    format: str = "text",
    *,
    passes: Iterable[RulePass] = (),
    original: LogicalPlan | None = None,
    analyze: Mapping[str, Measured] | Run | None = None,
    show_times: bool = True,
) -> str:
    """Explains a plan: what the rules did, what is shared, what runs when and why.

    Args:
        format: ``text``, ``json``, ``dot`` (Graphviz) or ``html`` (one self-contained page).
        passes: The optimizer's passes, for example ``BatchOptimization.passes``.
        original: The plan as written, for the first line of the rules.
        analyze: A run (``RunTrace``, or ``RunResult``, which has no times), or measured figures by
            operator; put beside the predicted ones.
        show_times: Whether to print how long each rule took; off, the text is reproducible.

    Raises:
        PlanError: The format is unknown, or ``analyze`` names an operator the plan does not have.
    """
    if format not in FORMATS:
        raise PlanError(f"explain: unknown format {format!r}; known: {list(FORMATS)}")
    report = build_report(
        plan, passes=passes, original=original, analyze=analyze, show_times=show_times
    )
    return FORMATS[format](report)
