"""Runs a compiled plan: one asyncio dataflow over one or many engines."""

from helium.runtime.backend import EngineBackend, ModelAnswer, ModelCall
from helium.runtime.invoke import invoke, invoke_async
from helium.runtime.processor import run_plan
from helium.runtime.result import RowFailure, RunResult

__all__ = [
    "EngineBackend",
    "ModelAnswer",
    "ModelCall",
    "RowFailure",
    "RunResult",
    "invoke",
    "invoke_async",
    "run_plan",
]
