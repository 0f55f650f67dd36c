"""A run as OpenTelemetry spans, made of its trace when it is over: one for the run, one per call.

Needs ``opentelemetry-api``, and records only where the process has set up a tracer provider; vLLM
does so for ``--otlp-traces-endpoint``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from helium.runtime.trace import RunTrace


def export_spans(trace: RunTrace, tracer: Tracer | None = None) -> bool:
    """Hands the spans of a finished run to the tracer; returns whether there was one.

    Args:
        tracer: The process's by default.
    """
    try:
        from opentelemetry.trace import Status, StatusCode, get_tracer, set_span_in_context
    except ImportError:
        return False
    tracer = tracer or get_tracer("helium")

    def unix_ns(seconds: float) -> int:
        return round(1e9 * (trace.started_at + seconds))

    whole = tracer.start_span(
        "helium.run",
        start_time=unix_ns(0.0),
        attributes={"helium.run": trace.run, "helium.status": trace.status},
    )
    parent = set_span_in_context(whole)
    for span in trace.spans:
        attributes: dict[str, str | int | float] = {
            "helium.operator": span.operator,
            "helium.row": span.row,
            "helium.origin": span.origin,
        }
        if span.origin == "engine":
            attributes |= {
                "helium.engine": span.engine,
                "gen_ai.usage.prompt_tokens": span.num_prompt_tokens,
                "gen_ai.usage.completion_tokens": span.num_output_tokens,
                "helium.cached_tokens": span.num_cached_tokens,
                "helium.queue_ms": span.queue_ms,
            }
        one = tracer.start_span(
            "helium.function" if span.origin == "function" else "helium.call",
            context=parent,
            start_time=unix_ns(span.start_s),
            attributes=attributes,
        )
        if span.note:
            one.set_status(Status(StatusCode.ERROR, span.note))
        one.end(unix_ns(span.end_s))
    if trace.status != "done":
        whole.set_status(Status(StatusCode.ERROR, trace.status))
    whole.end(unix_ns(trace.elapsed_s))
    return True
