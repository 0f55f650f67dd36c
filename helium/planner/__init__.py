"""Placement and scheduling of a bound plan over one or more engines."""

from helium.planner.orders import BASELINES
from helium.planner.planning import plan_workflow
from helium.planner.prediction import Prediction
from helium.planner.workflow_plan import CallPlace, NestedSequence, WorkflowPlan

__all__ = [
    "BASELINES",
    "CallPlace",
    "NestedSequence",
    "Prediction",
    "WorkflowPlan",
    "plan_workflow",
]
