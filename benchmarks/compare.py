"""Compares two reports, run by run.

    python -m benchmarks.compare OLD.json NEW.json [--tolerance 0.01]

Simulated figures repeat exactly, so that every difference is one of the code; wall-clock figures of
real engines move by the noise floor their report states. Exits with 1 if a run of one of our own
systems got slower by more than the tolerance, or is no longer there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report.tables import markdown

_FIGURES = {
    "makespan_s": "makespan s",
    "num_prefill_tokens": "prefill",
    "num_output_tokens": "output",
    "num_evictions": "evictions",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the comparison; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument(
        "--tolerance", type=float, default=0.01, help="share by which ours may get slower"
    )
    parser.add_argument("--all", action="store_true", help="also list what has not changed")
    options = parser.parse_args(arguments)
    try:
        old, new = (dict(runs(path)) for path in (options.old, options.new))
    except (OSError, ValueError) as error:
        parser.error(f"cannot read a report: {error}")
    rows, regressions = compare(old, new, options.tolerance, options.all)
    print(markdown([["run", *_FIGURES.values(), "time"], *rows]) if rows else "no run has changed")
    for title in regressions:
        print(f"REGRESSION {title}")
    return 1 if regressions else 0


def runs(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the runs of a report by title; understands ``benchmarks.simulate`` as well.

    Raises:
        ValueError: The file is no report.
    """
    content = json.loads(path.read_text())
    if not isinstance(content, dict) or not {"entries", "results"} & content.keys():
        raise ValueError(f"{path} has neither 'entries' nor 'results'")
    found = list(content.get("results", ()))
    for entry in content.get("entries", {}).values():
        found += entry if isinstance(entry, list) else ()
    for result in found:
        setting = json.dumps(result["setting"], sort_keys=True)
        title = result.get("title") or f"{setting}: {result['system']['name']}"
        yield title, result


def compare(
    old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]], tolerance: float, is_all: bool
) -> tuple[list[list[str]], list[str]]:
    """Returns the table's rows and the titles of runs that got worse."""
    rows: list[list[str]] = []
    regressions: list[str] = []
    for title in [*old, *(title for title in new if title not in old)]:
        before, after = old.get(title), new.get(title)
        if before is None or after is None:
            rows.append([title, *[""] * len(_FIGURES), "new" if before is None else "gone"])
            if before is not None and _is_ours(before):
                regressions.append(title)
            continue
        figures, others = before["figures"], after["figures"]
        ratio = others["makespan_s"] / figures["makespan_s"]
        if is_all or any(figures[name] != others[name] for name in _FIGURES):
            cells = [f"{figures[name]:,.6g} → {others[name]:,.6g}" for name in _FIGURES]
            rows.append([title, *cells, f"{100 * (ratio - 1):+.1f} %"])
        if _is_ours(after) and ratio > 1 + tolerance:
            regressions.append(title)
    return rows, regressions


def _is_ours(result: dict[str, Any]) -> bool:
    return str(result["system"]["name"]).startswith("helium")


if __name__ == "__main__":
    sys.exit(main())
