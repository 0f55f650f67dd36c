"""Runs side by side, as rows of text for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Figures = Mapping[str, Any]
Result = Mapping[str, Any]


def reference_of(results: Sequence[Result]) -> Result | None:
    """Returns the run ratios are taken to: the first of our own systems, if there is one."""
    return next((r for r in results if r["system"]["name"].startswith("helium")), None)


def ratios(results: Sequence[Result]) -> dict[str, float]:
    """Returns every system's makespan over ours: above 1 is slower than we are."""
    reference = reference_of(results)
    if reference is None:
        return {}
    ours_s = reference["figures"]["makespan_s"]
    return {r["system"]["name"]: r["figures"]["makespan_s"] / ours_s for r in results}


def table(results: Sequence[Result]) -> list[list[str]]:
    """Returns a header and one row per run."""
    factors = ratios(results)
    has_bound = any("offline_bound" in r["figures"] for r in results)
    columns: dict[str, Callable[[Result], str]] = {
        "system": lambda r: r["system"]["name"],
        "makespan s": lambda r: f"{r['figures']['makespan_s']:.1f}",
        "x ours": lambda r: f"{factors[r['system']['name']]:.2f}" if factors else "",
        "calls": lambda r: f"{r['figures']['num_calls']:,}",
        "prefill k": lambda r: f"{r['figures']['num_prefill_tokens'] / 1e3:,.0f}",
        "output k": lambda r: f"{r['figures']['num_output_tokens'] / 1e3:,.0f}",
        "hit %": lambda r: f"{100 * r['figures']['hit_ratio']:.1f}",
        "evicted": lambda r: f"{r['figures']['num_evictions']:,}",
        "preempted": lambda r: f"{r['figures']['num_preemptions']:,}",
        "p50 s": lambda r: f"{r['figures']['latency_p50_s']:.1f}",
        "p95 s": lambda r: f"{r['figures']['latency_p95_s']:.1f}",
        "planning ms": lambda r: f"{1e3 * r['wall']['planning_s']:.0f}",
        "plan KiB": lambda r: f"{r['figures'].get('num_plan_bytes', 0) / 1024:.0f}",
    }
    if has_bound:
        columns["gap to MIN %"] = _gap
    return [list(columns), *([show(result) for show in columns.values()] for result in results)]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows, the first of them the header, as a Markdown table; numbers to the right."""
    header, *body = rows
    lines = ["| " + " | ".join(header) + " |"]
    lines.append("|" + " --- |" + " ---: |" * (len(header) - 1))
    lines += ["| " + " | ".join(row) + " |" for row in body]
    return "\n".join(lines) + "\n"


def _gap(result: Result) -> str:
    bound = result["figures"].get("offline_bound")
    return f"{100 * bound['gap_ratio']:.1f}" if bound else ""
