"""Measures real systems on this machine's CPU, over the OpenAI API, with a real model.

    python -m benchmarks.real_systems [--workload NAME] [--system NAME] [--repeats N]

LangGraph, AgentScope and plain orders run on stock vLLM in an environment of its own; ours is this
repository's runtime over its fork. Every system is timed from its first call to its last, planning
included, with an empty prefix cache; on Trading ours runs a first day untimed, which fills its
prompt cache, and all are timed on the second. Answers are compared call by call, by the text of the
prompt. Repetitions give the noise floor (A/A); the processor time of servers is a second measure
that other load moves less, and the tokens that a server computed are one that nothing moves.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.gpu.kit import revision
from benchmarks.real_systems.environments import ensure, versions
from benchmarks.real_systems.servers import Tokens, serve
from benchmarks.real_systems.systems import SYSTEMS, Day, run
from benchmarks.report.tables import markdown
from benchmarks.workflows import WORKFLOWS, Workload
from helium.errors import HeliumError

REPO = Path(__file__).resolve().parents[2]
WORKLOADS: dict[str, dict[str, Any]] = {
    "mapreduce-mmlu": {"size": 4, "scale": 0.5, "max_tokens": 32},
    # Texts and answers shortened alike: 16 tokens are a 32nd of what is published.
    "trading-8b": {"size": 1, "scale": 0.03, "max_tokens": 16},
}
"""Sizes that two cores get through in minutes."""

DEFAULT_SYSTEMS = ("langgraph", "helium", "agentscope", "op_wise", "random", "query_wise")
"""The first one and ours come first and are repeated after the others have run."""

SLOW = ("query_wise",)
"""One call at a time: takes as long as all others together, and is left to the end."""

RESERVE = 1.3
"""How much longer than the longest of its workload a run is expected to take at worst."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for."""
    from vllm_helium.models.smollm2 import ensure_smollm2

    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        environments = {"stock": ensure("stock"), "frameworks": ensure("frameworks")}
        model = options.model or ensure_smollm2()
        started = time.monotonic()  # setting up is done once and not measured
        load = os.getloadavg()
        workloads = {
            name: [_workload(name, day, options) for day in _days(name)]
            for name in options.workload or WORKLOADS
        }
        found = measure(workloads, environments["stock"], model, options)
    except HeliumError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    results = [
        _compared(name, days, found[name]) for name, days in workloads.items() if any(found[name])
    ]
    report = {
        "environment": {
            **{name: versions(python) for name, python in environments.items()},
            "ours": versions(Path(sys.executable)),
            "command": "python -m benchmarks.real_systems " + " ".join(sys.argv[1:]),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "load_average_before": load,
            "load_average_after": os.getloadavg(),
            "omp_num_threads": os.environ["OMP_NUM_THREADS"],
            "revision": revision(),
            "block_size": options.block_size or "vLLM's default",
        },
        "workloads": results,
        "elapsed_s": time.monotonic() - started,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    for result in results:
        print(f"\n{result['workload']}, {result['rows']} rows\n\n{table(result)}")
    print(f"{options.output}, {report['elapsed_s']:.0f} s in all")
    return 0 if results and all(r["is_identical"] for r in results) else 1


def measure(
    workloads: Mapping[str, Sequence[Workload]],
    stock: Path,
    model: Path,
    options: argparse.Namespace,
) -> dict[str, dict[str, list[Day]]]:
    """Runs the systems on all workloads; returns workload -> system -> its runs.

    The most important runs come first: the first system and ours on every workload, then the other
    systems, then repetitions of the first two. What would end after the limit is not started.
    """
    systems = list(dict.fromkeys(options.system or DEFAULT_SYSTEMS))
    repeated = [name for name in systems if name in (systems[0], "helium")]
    slow = [name for name in systems if name in SLOW and name not in repeated]
    others = [name for name in systems if name not in (*repeated, *slow)]
    rounds = [repeated, others, *[repeated] * (options.repeats - 1), slow]
    found: dict[str, dict[str, list[Day]]] = {name: {} for name in workloads}
    longest_s = dict.fromkeys(workloads, 0.0)
    block = ["--block-size", str(options.block_size)] if options.block_size else []
    logs = REPO / "build" / "real-systems"
    end_s = time.monotonic() + options.limit
    with (
        serve(stock, model, logs / "stock.log", block) as theirs,
        serve(Path(sys.executable), model, logs / "ours.log", ["--helium", *block]) as ours,
    ):
        for server in (theirs, ours):
            run("dataflow", server, [_warm_up()], model)
        for chosen, (name, days) in itertools.product(rounds, workloads.items()):
            for system in chosen:
                started = time.monotonic()
                if started + RESERVE * longest_s[name] > end_s:
                    print(f"{name}: {system} not run: no time left", flush=True)
                    continue
                last = run(system, ours if system == "helium" else theirs, days, model)[-1]
                longest_s[name] = max(longest_s[name], time.monotonic() - started)
                found[name].setdefault(system, []).append(last)
                print(
                    f"{name}: {system} {last.elapsed_s:.1f} s, server's processor time "
                    f"{last.server_cpu_s:.1f} s, {last.tokens.num_computed} of "
                    f"{last.tokens.num_prompt} prompt tokens computed, {last.tokens.num_output} "
                    "generated",
                    flush=True,
                )
    return found


def _compared(name: str, days: Sequence[Workload], found: dict[str, list[Day]]) -> dict[str, Any]:
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
        }
    return {
        "workload": name,
        "rows": days[0].num_rows,
        "options": WORKLOADS[name],
        "is_warm": len(days) > 1,
        "reference": reference,
        "systems": rows,
        "is_identical": all(row["different_answers"] == 0 for row in rows.values()),
    }


def table(result: dict[str, Any]) -> str:
    """Returns a workload's systems as Markdown."""
    header = ["system", "best s", "A/A", "x ours", "CPU s", "CPU x ours", "calls"]
    rows = [[*header, "prefill tokens", "output tokens", "differing answers"]]
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
                str(row["different_answers"]),
            ]
        )
    return markdown(rows)


def _days(name: str) -> tuple[int, ...]:
    return (1, 2) if name.startswith("trading") else (1,)


def _workload(name: str, day: int, options: argparse.Namespace) -> Workload:
    arguments = dict(WORKLOADS[name])
    if options.rows:
        arguments["size"] = options.rows
    if name.startswith("trading"):
        arguments["day"] = day
    return WORKFLOWS[name](distinct=options.distinct, **arguments)


def _warm_up() -> Workload:
    """What a server sees first, so that nobody pays for its first step."""
    return WORKFLOWS["debate-mmlu"](size=1, scale=0.1, max_tokens=2, seed=99)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_systems",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--workload", action="append", choices=list(WORKLOADS), help="repeatable; default: all")
    add("--system", action="append", choices=SYSTEMS, help="repeatable")
    add("--repeats", type=int, default=2)
    add("--limit", type=float, default=840, metavar="SECONDS", help="for all runs together")
    add("--rows", type=int, help="instead of the workload's own number")
    add("--distinct", action="store_true", help="agents that are all different")
    add("--block-size", type=int, help="of the KV cache; vLLM's default for the CPU if not given")
    add("--model", type=Path, help="model folder; the small model that comes along by default")
    add(
        "--output",
        type=Path,
        default=REPO / "benchmarks" / "results" / "local" / "real_systems.json",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
