"""Workflows as query plans: language, optimizer, planner and runtime.

This package imports neither vllm nor torch; the engine's side is ``vllm_helium``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from helium.dsl.functions import function
    from helium.dsl.graph import Graph, build
    from helium.dsl.workflow import Workflow, workflow
    from helium.plan.compiled_plan import CompiledPlan
    from helium.plan.logical_plan import LogicalPlan

_EXPORTS = {
    "CompiledPlan": "helium.plan.compiled_plan",
    "Graph": "helium.dsl.graph",
    "LogicalPlan": "helium.plan.logical_plan",
    "Workflow": "helium.dsl.workflow",
    "build": "helium.dsl.graph",
    "function": "helium.dsl.functions",
    "invoke": "helium.runtime",
    "workflow": "helium.dsl.workflow",
}

__all__ = ["CompiledPlan", "Graph", "LogicalPlan", "Workflow", "build", "function", "workflow"]


def __getattr__(name: str) -> Any:
    """Imports public names on first use, so that ``import helium.protocol`` stays cheap."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'helium' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
