"""Measures real systems on this machine's CPU, over the OpenAI API, with a real model.

    python -m benchmarks.real_systems [--workload NAME] [--system NAME] [--block-size N] [...]

LangGraph, AgentScope and plain orders run on stock vLLM in an environment of its own; ours is this
repository's runtime over its fork. Every system is timed from its first call to its last, planning
included, with an empty prefix cache; on Trading ours runs a first day untimed, which fills its
prompt cache, and all are timed on the second. Answers are compared call by call, by the text of the
prompt. Repetitions give the noise floor (A/A); the processor time of servers is a second measure
that other load moves less, and the tokens that a server computed are one that nothing moves.

Texts are shortened, and the CPU engine's own block of 128 tokens then hides most of what stock vLLM
would share of them at full length in the 16 of a GPU. So the first system and ours are also run
with the smallest block there is, 32; those ratios are the ones to read for the published shapes.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.real_systems.comparison import compared, summary
from benchmarks.real_systems.environments import ensure, versions
from benchmarks.real_systems.servers import Server, serve
from benchmarks.real_systems.systems import SYSTEMS, Day, run
from benchmarks.results_file import environment, write_results
from benchmarks.workflows import WORKFLOWS, Workload
from helium.errors import HeliumError

REPO = Path(__file__).resolve().parents[2]
WORKLOADS: dict[str, dict[str, Any]] = {
    "mapreduce-mmlu": {"size": 8, "scale": 0.5, "max_tokens": 32},
    # Texts and answers shortened alike: 16 tokens are a 32nd of what is published.
    "trading-8b": {"size": 2, "scale": 0.03, "max_tokens": 16},
    "trading-16b": {"size": 1, "scale": 0.03, "max_tokens": 16},
}
"""Sizes that two cores get through in minutes.

Of one row most steps hold little, and both systems pay for reading the weights; published batches
have 16 rows and more. These fill steps as far as the time allows.
"""

DEFAULT_WORKLOADS = ("mapreduce-mmlu", "trading-8b")

DEFAULT_BLOCK_SIZES = (0, 32)
"""vLLM's default, with all systems, then the smallest, with the first system and ours."""

DEFAULT_SYSTEMS = ("langgraph", "helium", "agentscope", "op_wise", "random", "query_wise")
"""The first one and ours come first and are repeated after the others have run."""

SLOW = ("query_wise",)
"""One call at a time: takes as long as all others together, and is left to the end."""

RESERVE = 1.3
"""How much longer than before a run is expected to take at worst: than the system's own last run of
the workload, else than the longest of any system."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for."""
    from vllm_helium.models.smollm2 import ensure_smollm2

    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        environments = {"stock": ensure("stock"), "frameworks": ensure("frameworks")}
        model = options.model or ensure_smollm2()
        started = time.monotonic()  # setting up is done once and not measured
        load = os.getloadavg()[0]
        workloads = {
            name: [_workload(name, day, options) for day in _days(name)]
            for name in options.workload or DEFAULT_WORKLOADS
        }
        found = measure(workloads, environments["stock"], model, options)
    except HeliumError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    results = [
        compared(days, by_system, block_size, _shape(name, options))
        for block_size, by_workload in found.items()
        for (name, days), by_system in zip(workloads.items(), by_workload.values(), strict=True)
        if by_system
    ]
    report = {
        "environment": {
            **environment(),
            **{name: versions(python) for name, python in environments.items()},
            "ours": versions(Path(sys.executable)),
            "load_average_before": load,
            "omp_num_threads": os.environ["OMP_NUM_THREADS"],
        },
        "workloads": results,
        "elapsed_s": time.monotonic() - started,
    }
    write_results(options.output, report)
    text = summary(report)
    options.output.with_suffix(".md").write_text(text)
    print(f"\n{text}\n{options.output}, {report['elapsed_s']:.0f} s in all")
    return 0 if results and all(r["is_identical"] for r in results) else 1


def measure(
    workloads: Mapping[str, Sequence[Workload]],
    stock: Path,
    model: Path,
    options: argparse.Namespace,
) -> dict[int, dict[str, dict[str, list[Day]]]]:
    """Runs the systems on all workloads; returns block size -> workload -> system -> its runs.

    The most important runs come first: the first system and ours on every workload, then the other
    systems, then repetitions of the first two. Further block sizes get only the first two, once,
    and as much time is kept for them. What would end after the limit is not started.
    """
    systems = list(dict.fromkeys(options.system or DEFAULT_SYSTEMS))
    pair = [name for name in systems if name in (systems[0], "helium")]
    slow = [name for name in systems if name in SLOW and name not in pair]
    others = [name for name in systems if name not in (*pair, *slow)]
    repeats = [pair] * (options.repeats - 1)
    end_s = time.monotonic() + options.limit
    first, *further = dict.fromkeys(options.block_size or DEFAULT_BLOCK_SIZES)
    measured = _Measured(workloads, stock, model, end_s, len(further))
    measured.run(first, [pair, others, *repeats, slow])
    measured.num_further = 0
    for block_size in further:
        measured.run(block_size, [pair])
    return measured.found


class _Measured:
    """Runs and what they found, until the time is up.

    Attributes:
        found: Block size -> workload -> system -> its runs.
        num_further: Block sizes for which time is kept, as much for each as the first round takes.
    """

    def __init__(
        self,
        workloads: Mapping[str, Sequence[Workload]],
        stock: Path,
        model: Path,
        end_s: float,
        num_further: int,
    ) -> None:
        self.found: dict[int, dict[str, dict[str, list[Day]]]] = {}
        self.num_further = num_further
        self._workloads = workloads
        self._stock = stock
        self._model = model
        self._end_s = end_s
        self._last_s: dict[str, dict[str, float]] = {name: {} for name in workloads}

    def run(self, block_size: int, rounds: Sequence[Sequence[str]]) -> None:
        """Makes rounds of runs on two new servers."""
        found = self.found[block_size] = {name: {} for name in self._workloads}
        extra = ["--block-size", str(block_size)] if block_size else []
        logs = REPO / "build" / "real-systems"
        started_s, end_s = time.monotonic(), self._end_s
        with (
            serve(self._stock, self._model, logs / "stock.log", extra) as theirs,
            serve(
                Path(sys.executable), self._model, logs / "ours.log", ["--helium", *extra]
            ) as ours,
        ):
            for server in (theirs, ours):
                run("dataflow", server, [_warm_up()], self._model)
            for number, chosen in enumerate(rounds):
                for name, system in itertools.product(self._workloads, chosen):
                    server = ours if system == "helium" else theirs
                    last = self._run_one(name, system, server, end_s)
                    if last is not None:
                        found[name].setdefault(system, []).append(last)
                if not number:
                    end_s -= self.num_further * (time.monotonic() - started_s)

    def _run_one(self, name: str, system: str, server: Server, end_s: float) -> Day | None:
        started_s = time.monotonic()
        last_s = self._last_s[name]
        expected_s = last_s.get(system, max(last_s.values(), default=0.0))
        if started_s + RESERVE * expected_s > end_s:
            print(f"{name}: {system} not run: no time left", flush=True)
            return None
        last = run(system, server, self._workloads[name], self._model)[-1]
        last_s[system] = time.monotonic() - started_s
        print(
            f"{name}: {system} {last.elapsed_s:.1f} s, server's processor time "
            f"{last.server_cpu_s:.1f} s, {last.tokens.num_computed} of "
            f"{last.tokens.num_prompt} prompt tokens computed, {last.tokens.num_output} "
            f"generated, {last.tokens.num_steps} steps",
            flush=True,
        )
        return last


def _days(name: str) -> tuple[int, ...]:
    return (1, 2) if name.startswith("trading") else (1,)


def _workload(name: str, day: int, options: argparse.Namespace) -> Workload:
    arguments = _shape(name, options)
    if name.startswith("trading"):
        arguments["day"] = day
    return WORKFLOWS[name](distinct=options.distinct, **arguments)


def _shape(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Size, scale and length of answers: the workload's own but for what was asked for."""
    asked = {"size": options.rows, "scale": options.scale, "max_tokens": options.max_tokens}
    return WORKLOADS[name] | {key: value for key, value in asked.items() if value}


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
    add(
        "--workload",
        action="append",
        choices=list(WORKLOADS),
        help=f"repeatable; default: {', '.join(DEFAULT_WORKLOADS)}",
    )
    add("--system", action="append", choices=SYSTEMS, help="repeatable")
    add("--repeats", type=int, default=2)
    add("--limit", type=float, default=840, metavar="SECONDS", help="for all runs together")
    add("--rows", type=int, help="instead of the workload's own number")
    add("--scale", type=float, help="factor on the lengths of texts, instead of the workload's own")
    add("--max-tokens", type=int, help="of an answer, instead of the workload's own number")
    add("--distinct", action="store_true", help="agents that are all different")
    add(
        "--block-size",
        type=int,
        action="append",
        help="of the KV cache, repeatable; 0 is vLLM's default for the CPU; default: 0, then 32 "
        "for the first system and ours",
    )
    add("--model", type=Path, help="model folder; the small model that comes along by default")
    add(
        "--output",
        type=Path,
        default=REPO / "benchmarks" / "results" / "local" / "real_systems.json",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
