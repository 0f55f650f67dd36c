"""Placement and scheduling of a bound plan over one or more engines."""

from helium.planner.orders import BASELINES
from helium.planner.planning import plan_workflow
from helium.planner.workflow_plan import CallPlace, Prediction, Sequence, WorkflowPlan

__all__ = ["BASELINES", "CallPlace", "Prediction", "Sequence", "WorkflowPlan", "plan_workflow"]
