"""What a run tells while it goes on; JSON by ``msgspec``, told apart by ``type``."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from helium.plan.interpret import Value


class RunStarted(msgspec.Struct, frozen=True, tag="run_started"):
    """A run begins, or goes on after it was interrupted.

    Attributes:
        num_calls: LLM calls still to be made.
    """

    run: str
    num_calls: int


class CallStarted(msgspec.Struct, frozen=True, tag="call_started"):
    """A call went to an engine, again where it moves on; calls answered otherwise only finish."""

    operator: str
    row: int
    engine: int


class CallFinished(msgspec.Struct, frozen=True, tag="call_finished"):
    """A call has its ``n`` outputs.

    Attributes:
        origin: ``engine``, ``shared`` (an equal call under way) or ``prompt_cache``; tokens are
            counted for the first alone.
        queue_ms: Time in the engine's queue, where it says so.
        misses: Why prompt tokens were not in its cache, reason -> tokens, where it says so.
        engine: Engine that answered, also where the call was placed on another one; ``None`` where
            no engine did.
    """

    operator: str
    row: int
    outputs: tuple[str, ...]
    origin: str = "engine"
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    queue_ms: float = 0.0
    misses: dict[str, int] = {}
    engine: int | None = None


class FunctionFinished(msgspec.Struct, frozen=True, tag="function_finished"):
    """A user function has returned."""

    operator: str
    row: int
    output: str


class RowFailed(msgspec.Struct, frozen=True, tag="row_failed"):
    """A call or a function failed for good; what reads it fails along, without a word."""

    operator: str
    row: int
    reason: str


class RowDone(msgspec.Struct, frozen=True, tag="row_done"):
    """A row of a result is there.

    Attributes:
        output: Key of the result.
        value: ``None`` if the row failed.
    """

    output: str
    row: int
    value: Value | None


class RunFinished(msgspec.Struct, frozen=True, tag="run_finished"):
    """Nothing follows.

    Attributes:
        status: ``done``, also where rows failed; ``cancelled``, ``timed_out``, or ``failed`` where
            the run as a whole could not go on.
    """

    status: str
    num_failures: int


Event = (
    RunStarted | CallStarted | CallFinished | FunctionFinished | RowFailed | RowDone | RunFinished
)


class CallDelta(msgspec.Struct, frozen=True, tag="call_delta", gc=False):
    """An output of a call under way has grown; only those are told who ask for it.

    Nothing depends on deltas: what lags behind gets fewer and longer ones, and ``CallFinished``
    has everything. The deltas of an output put together are the output, where there are any.

    Attributes:
        index: Of the output, below the call's ``n``.
        text: What it has grown by.
        replaces: Whether what came before is void, and this begins anew: the call was made again.
    """

    operator: str
    row: int
    index: int
    text: str
    replaces: bool = False


Listener = Callable[[Event], None]
"""Told of every event, on the event loop; must neither block nor raise."""
