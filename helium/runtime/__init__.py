"""Runs a compiled plan: one asyncio dataflow over one or many engines."""

from helium.runtime.backend import EngineBackend, EngineUnavailable, ModelAnswer, ModelCall
from helium.runtime.invoke import invoke, invoke_async
from helium.runtime.processor import run_plan
from helium.runtime.prompt_cache import PromptCache
from helium.runtime.result import RowFailure, RunResult
from helium.runtime.retries import RetryPolicy

__all__ = [
    "EngineBackend",
    "EngineUnavailable",
    "ModelAnswer",
    "ModelCall",
    "PromptCache",
    "RetryPolicy",
    "RowFailure",
    "RunResult",
    "invoke",
    "invoke_async",
    "run_plan",
]
