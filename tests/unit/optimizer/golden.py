"""Golden files: what each rule makes of small plans, as text to review.

``HELIUM_UPDATE_GOLDEN=1 python -m pytest tests/unit/optimizer`` writes them anew.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from helium.plan.compiled_plan import CompiledPlan
from helium.plan.logical_plan import LogicalPlan

_FOLDER = Path(__file__).parents[2] / "golden" / "optimizer"


def check_golden(
    rule: str, cases: Mapping[str, tuple[LogicalPlan | CompiledPlan, LogicalPlan | CompiledPlan]]
) -> None:
    """Compares the before and after of every case with the rule's golden file."""
    sections = [
        f"# {claim}\n--- before\n{_show(before)}\n--- after\n{_show(after)}\n"
        for claim, (before, after) in cases.items()
    ]
    found = "\n".join(sections)
    path = _FOLDER / f"{rule}.txt"
    if os.environ.get("HELIUM_UPDATE_GOLDEN") == "1":
        path.write_text(found)
    assert path.read_text() == found


def _show(plan: LogicalPlan | CompiledPlan) -> str:
    if isinstance(plan, LogicalPlan):
        return plan.to_text()
    lines = [plan.plan.to_text()]
    lines += [f"column {column}: {values}" for column, values in plan.columns.items()]
    lines += [f"known {name}: {rows}" for name, rows in plan.known.items()]
    lines += [f"equal rows {name}: {rows}" for name, rows in plan.representatives.items()]
    lines += [f"calls {op.name}: {list(plan.calls(op.name))}" for op in plan.plan.llm_operators]
    return "\n".join(lines)
