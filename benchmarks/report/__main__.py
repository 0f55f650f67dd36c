"""Runs the benchmark matrix and reports it: JSON, Markdown and plots.

    python -m benchmarks.report                    # the core entries
    python -m benchmarks.report primitives batches --deadline 1500
    python -m benchmarks.report --list

Runs are kept under benchmarks/results/local/ by everything their figures depend on, so that a
second report makes only what has changed. What the deadline left out is listed as not run.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.report.cases import REPO, STORE, Case, Store
from benchmarks.report.entries import CORE, ENTRIES, Entry, Group
from benchmarks.report.plots import has_matplotlib, plot_ratios
from benchmarks.report.tables import markdown, ratios, reference_of, table
from benchmarks.results_file import environment, write_results
from helium.errors import HeliumError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list:
        for entry in ENTRIES.values():
            print(f"{entry.name:12} {entry.question} ({entry.source})")
        return 0
    unknown = [name for name in options.names if name not in ENTRIES]
    if unknown:
        parser.error(f"unknown entries {unknown}; known: {list(ENTRIES)}")
    entries = [ENTRIES[name] for name in options.names or CORE]
    if options.seed:
        entries = [entry.with_seed(options.seed) for entry in entries]
    deadline_s = time.monotonic() + options.deadline if options.deadline else float("inf")
    store = Store(options.store)
    report = Report(entries, store, deadline_s, options.kept_only, options.only)
    # What is loaded by now stays, and a run makes millions of objects that hardly ever form cycles.
    gc.freeze()
    thresholds = gc.get_threshold()
    gc.set_threshold(200_000, 50, 1_000)
    try:
        report.run()
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
        report.write(options.output)
    print(report.summary())
    print(f"\n{options.output.with_suffix('.md')}, {options.output.with_suffix('.json')}")
    return 0


class Report:
    """The entries with their runs.

    Args:
        deadline_s: Monotonic time after which no run is started that would end later.
        is_kept_only: Makes no run; reports those of the store.
        only: Systems to run, by name; nothing for all.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        store: Store,
        deadline_s: float = float("inf"),
        is_kept_only: bool = False,
        only: Sequence[str] = (),
    ) -> None:
        self._entries = entries
        self._store = store
        self._deadline_s = deadline_s
        self._is_kept_only = is_kept_only
        self._only = frozenset(only)
        self._results: dict[str, dict[str, Any]] = {}
        self._failures: dict[str, str] = {}

    def run(self) -> None:
        """Makes the runs that are not there, as far as time allows."""
        for entry in self._entries:
            if entry.command:
                self._command(entry)
            for group in entry.groups:
                for case in group.cases():
                    self._case(case)

    def write(self, path: Path) -> None:
        """Writes the report beside ``path``: .json, .md and one plot per entry."""
        text = ["# Benchmark report\n"]
        text.append(
            "Simulated figures are in virtual seconds: real scheduler and KV cache, a roofline "
            "instead of a device (assumptions: benchmarks/results, helium/cost/roofline.py). "
            "Ratios above 1 mean slower than ours.\n"
        )
        text.append(f"```\n{self.summary()}\n```\n")
        for entry in self._entries:
            text.append(self._section(entry, path.with_name(f"{path.stem}-{entry.name}.png")))
        content = {
            "environment": environment() | {"plots": has_matplotlib()},
            "entries": {entry.name: self._content(entry) for entry in self._entries},
            "not_run": self._missing(),
            "failures": self._failures,
        }
        write_results(path.with_suffix(".json"), content)
        path.with_suffix(".md").write_text("\n".join(text))

    def summary(self) -> str:
        """Returns one line per setting: ours, and every baseline over it."""
        lines = []
        for entry in self._entries:
            for group in entry.groups:
                results = self._of(group)
                reference = reference_of(results)
                if reference is None:
                    continue
                factors = ratios(results)
                ours = reference["system"]["name"]
                others = (f"{n} {v:.2f}" for n, v in factors.items() if n != ours)
                seconds = reference["figures"]["makespan_s"]
                line = f"{entry.name:11} {group.label:24} {ours} {seconds:.1f} s; "
                lines.append(line + ", ".join(others))
            if entry.command:
                lines += self._results.get(entry.name, {}).get("summary", ())
        missing = self._missing()
        lines += [f"not run within the deadline: {len(missing)}"] if missing else []
        lines += [f"FAILED {title}: {reason}" for title, reason in self._failures.items()]
        return "\n".join(lines) or "nothing has been run"

    def _case(self, case: Case) -> None:
        result = self._store.find(case)
        is_asked = not self._only or case.system.name in self._only
        if result is None and is_asked and not self._is_kept_only:
            left_s = self._deadline_s - time.monotonic()
            if self._store.estimate_s(case) > left_s:
                return
            try:
                result = self._store.run(case)
            except HeliumError as error:
                self._failures[case.title] = str(error)
                return
            finally:
                gc.collect()
            seconds, wall_s = result["figures"]["makespan_s"], result["wall"]["run_s"]
            print(f"{case.title}: {seconds:.1f} s (took {wall_s:.0f} s)", flush=True)
        if result is not None:
            self._results[case.title] = result

    def _command(self, entry: Entry) -> None:
        output = self._store.folder / f"{entry.name}.json"
        left_s = self._deadline_s - time.monotonic()
        if not self._is_kept_only and left_s > 0:
            output.parent.mkdir(parents=True, exist_ok=True)
            # As it would be typed: results name their command.
            path = output.relative_to(REPO) if output.is_relative_to(REPO) else output
            command = [word.format(output=path) for word in entry.command]
            print(f"python -m {' '.join(command)}", flush=True)
            try:
                subprocess.run(
                    [sys.executable, "-m", *command],
                    cwd=REPO,
                    check=True,
                    timeout=None if left_s == float("inf") else left_s,
                )
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                self._failures[entry.name] = str(error)
                return
        if output.exists():
            self._results[entry.name] = json.loads(output.read_text())

    def _of(self, group: Group) -> list[dict[str, Any]]:
        found = (self._results.get(case.title) for case in group.cases())
        return [result for result in found if result is not None]

    def _missing(self) -> list[str]:
        titles = (case.title for e in self._entries for g in e.groups for case in g.cases())
        return [t for t in titles if t not in self._results and t not in self._failures]

    def _section(self, entry: Entry, plot: Path) -> str:
        parts = [f"## {entry.name}: {entry.question}\n", f"Corresponds to: {entry.source}.\n"]
        parts.append(f"`python -m benchmarks.report {entry.name}`\n")
        factors: dict[str, dict[str, float]] = {}
        for group in entry.groups:
            results = self._of(group)
            if not results:
                continue
            parts.append(f"### {group.setting.title()}\n\n{markdown(table(results))}")
            factors[group.label] = ratios(results)
        if entry.command and entry.name in self._results:
            result = self._results[entry.name]
            content = json.dumps(result.get("summary", result), indent=1)
            parts.append(f"```json\n{content}\n```\n")
        if any(factors.values()) and plot_ratios(entry.question, factors, plot):
            parts.append(f"![{entry.question}]({plot.name})\n")
        return "\n".join(parts)

    def _content(self, entry: Entry) -> Any:
        if entry.command:
            return self._results.get(entry.name)
        return [result for group in entry.groups for result in self._of(group)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="ENTRY", help=f"of {', '.join(ENTRIES)}; default: core")
    add("--deadline", type=float, metavar="SECONDS", help="start no run that would end later")
    add("--list", action="store_true", help="print the entries and stop")
    add("--only", action="append", metavar="SYSTEM", default=[], help="repeatable; run no other")
    add("--seed", type=int, default=0, help="other texts and answers than those of seed 0")
    add("--kept-only", action="store_true", help="make no run; report what is kept")
    add("--store", type=Path, default=STORE, help="folder of the kept runs")
    add("--output", type=Path, default=STORE / "report", help="path without suffix")
    return parser


if __name__ == "__main__":
    sys.exit(main())
