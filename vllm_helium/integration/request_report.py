"""Hooks ``request-report`` and ``openai-response-report``: what the engine says about a request.

The scheduler leaves a small dict on the request's ``PrefillStats``; it comes back with the first
output and ends up as ``RequestOutput.helium`` and as ``helium`` in the HTTP response.
"""

from __future__ import annotations

from typing import Any


def report_fields(result: Any, finish_reason: Any = True) -> dict[str, Any]:
    """Returns extra fields for a response: ``{"helium": report}`` or nothing.

    Args:
        result: A ``RequestOutput``, or anything with its ``helium`` attribute, or ``None``.
        finish_reason: A falsy value means the choice goes on, and only its last chunk reports.
    """
    report = getattr(result, "helium", None)
    return {"helium": report} if report is not None and finish_reason else {}


def attach_report(response: Any, context: Any) -> None:
    """Adds the report a conversation context has seen to a response model that allows extras."""
    for name, value in report_fields(context).items():
        setattr(response, name, value)
