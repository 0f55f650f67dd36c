"""Runs of several systems side by side: JSON for later, tables to read."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.real_systems.servers import Tokens
from benchmarks.real_systems.systems import Day
from benchmarks.report.tables import markdown
from benchmarks.workflows import Workload


def compared(
    days: Sequence[Workload],
    found: dict[str, list[Day]],
    block_size: int,
    shape: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns a workload's runs as JSON: times beside ours, answers beside the first system's.

    Args:
        found: System -> its runs, at least one.
        block_size: 0 for vLLM's default.
        shape: What the workload was made with.
    """
    reference = next(iter(found))
    expected = found[reference][0].answers
    best = {system: min(day.elapsed_s for day in runs) for system, runs in found.items()}
    cpu = {system: min(day.server_cpu_s for day in runs) for system, runs in found.items()}
    ours_s, our_cpu_s = best.get("helium"), cpu.get("helium")
    rows = {}
    for system, runs in found.items():
        times = [day.elapsed_s for day in runs]
        # A prompt that the reference never sent contains another answer: counted as different.
        different = [sum(expected.get(p) != text for p, text in d.answers.items()) for d in runs]
        rows[system] = {
            "elapsed_s": times,
            "best_s": min(times),
            "median_s": statistics.median(times),
            "noise_ratio": max(times) / min(times),
            "ratio_to_ours": best[system] / ours_s if ours_s else None,
            "server_cpu_s": [day.server_cpu_s for day in runs],
            "cpu_ratio_to_ours": cpu[system] / our_cpu_s if our_cpu_s else None,
            "calls": runs[0].num_calls,
            "distinct_prompts": len(runs[0].answers),
            "different_answers": max(different),
            **{name: getattr(runs[0].tokens, name) for name in Tokens._fields},
            "least_prefill_tokens": runs[0].least_prefill_tokens,
        }
    return {
        "workload": days[0].name,
        "rows": days[0].num_rows,
        "block_size": block_size or "vLLM's default",
        "options": dict(shape),
        "is_warm": len(days) > 1,
        "reference": reference,
        "systems": rows,
        "is_identical": all(row["different_answers"] == 0 for row in rows.values()),
    }


def summary(report: Mapping[str, Any]) -> str:
    """Returns all tables as Markdown."""
    lines = ["# Real systems", "", f"`{report['environment']['command']}`", ""]
    for result in report["workloads"]:
        options = result["options"]
        lines += [
            f"## {result['workload']}, {result['rows']} rows, block size: {result['block_size']}",
            "",
            f"Texts times {options['scale']}, answers of up to {options['max_tokens']} tokens.",
            "",
            table(result),
        ]
        ours = result["systems"].get("helium")
        if ours and ours["least_prefill_tokens"]:
            lines += [
                f"Our calls take at least {ours['least_prefill_tokens']:,} prompt tokens, every "
                f"common one computed once; {ours['num_computed']:,} were computed.",
                "",
            ]
    return "\n".join(lines)


def table(result: dict[str, Any]) -> str:
    """Returns a workload's systems as Markdown."""
    header = ["system", "best s", "A/A", "x ours", "CPU s", "CPU x ours", "calls"]
    rows = [[*header, "prefill tokens", "output tokens", "steps", "differing answers"]]
    for name, row in result["systems"].items():
        wall, processor = (
            "" if ratio is None else f"{ratio:.2f}"
            for ratio in (row["ratio_to_ours"], row["cpu_ratio_to_ours"])
        )
        rows.append(
            [
                name,
                f"{row['best_s']:.1f}",
                f"{row['noise_ratio']:.2f}",
                wall,
                f"{min(row['server_cpu_s']):.1f}",
                processor,
                str(row["calls"]),
                f"{row['num_computed']:,}",
                f"{row['num_output']:,}",
                f"{row['num_steps']:,}",
                str(row["different_answers"]),
            ]
        )
    return markdown(rows)
