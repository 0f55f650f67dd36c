"""Runs a compiled plan: one asyncio dataflow over one or many engines."""

from helium.runtime.backend import (
    EngineBackend,
    EngineGone,
    EngineUnavailable,
    ModelAnswer,
    ModelCall,
)
from helium.runtime.invoke import invoke, invoke_async
from helium.runtime.processor import run_plan
from helium.runtime.profile_store import ProfileStore
from helium.runtime.prompt_cache import PromptCache
from helium.runtime.result import RowFailure, RunResult
from helium.runtime.retries import RetryPolicy
from helium.runtime.run import Run
from helium.runtime.run_store import RunError, RunInfo, RunStore
from helium.runtime.runtime import Runtime, RuntimeOptions
from helium.runtime.trace import RunTrace

__all__ = [
    "EngineBackend",
    "EngineGone",
    "EngineUnavailable",
    "ModelAnswer",
    "ModelCall",
    "ProfileStore",
    "PromptCache",
    "RetryPolicy",
    "RowFailure",
    "Run",
    "RunError",
    "RunInfo",
    "RunResult",
    "RunStore",
    "RunTrace",
    "Runtime",
    "RuntimeOptions",
    "invoke",
    "invoke_async",
    "run_plan",
]
