"""What ordinary traffic pays for Helium: seeded multi-turn chat, without plans, on and off.

Usage: python -m benchmarks.prefix_cache.ordinary_replay [--mode scheduler engine]
           [--kv-cache ample tight] [--rounds 7] [--output FILE]

* ``scheduler``: the real scheduler and KV cache manager without a model. Measured: CPU time per
  replay and of the slowest steps; in virtual time, throughput and latency are exact.
* ``engine``: the real CPU engine with a tiny model, so that the scheduler's share is large.
  Measured: throughput and latency of the calls, by the clock on the wall and by CPU time.

Stock is this build with Helium off. It is there twice: systems take turns, and the second copy's
ratios to the first are the noise floor (A/A). A ratio is the median over the rounds of the ratio to
stock in the same round; on the engine, where a turn is a few steps, every step takes the median of
its times in all rounds, and ratios follow from those. The exit status is 1 where throughput falls
below 0.98 of stock's or p99 rises above 1.02 of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results_file import environment, write_results

ARMS = ("stock", "helium", "stock_again")
MODES = ("scheduler", "engine")
KV_CACHES = ("ample", "tight")
MIN_THROUGHPUT = 0.98
MAX_P99 = 1.02
SCHEDULER = {
    # Users come one by one and think; the cache holds everything.
    "ample": (
        {"count": 120, "per_second": 20.0, "mean_think_s": 2.0, "max_tokens": 8_192},
        20_000,
    ),
    # Everybody at once, in a cache for a third of what they say: evictions and preemptions.
    "tight": (
        {"count": 160, "per_second": 1e3, "mean_think_s": 0.0, "max_tokens": 8_192},
        4_000,
    ),
}
"""Traffic and KV blocks of 16 tokens."""
ENGINE = {
    name: (
        {
            "count": 60,
            "per_second": 1.0,
            "mean_think_s": 0.0,
            "max_tokens": 1_900,
            "scale": 0.3,
        },
        num_blocks,
    )
    for name, num_blocks in (("ample", 1_000), ("tight", 160))
}
"""Traffic and KV blocks of 32 tokens."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=MODES, nargs="+", default=MODES)
    parser.add_argument("--kv-cache", choices=KV_CACHES, nargs="+", default=KV_CACHES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/prefix_cache_ordinary_replay.json")
    )
    arguments = parser.parse_args()
    rows = []
    for mode, kv_cache in itertools.product(arguments.mode, arguments.kv_cache):
        measure = {"scheduler": measure_scheduler, "engine": measure_engine}[mode]
        row = {"mode": mode, "kv_cache": kv_cache, "rounds": arguments.rounds}
        row |= measure(kv_cache, arguments.rounds, arguments.seed)
        row["environment"] = environment()
        rows.append(row)
        print(json.dumps(row), flush=True)
    write_rows(arguments.output, rows)
    problems = [problem for row in rows for problem in broken_limits(row)]
    for problem in problems:
        print(f"broken: {problem}")
    sys.exit(bool(problems))


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes the rows; those of settings not measured this time stay."""
    kept = json.loads(path.read_text()) if path.exists() else []
    merged = {(row["mode"], row["kv_cache"]): row for row in [*kept, *rows]}
    write_results(path, list(merged.values()))


# --- figures -------------------------------------------------------------------------------------


def ratios_to_stock(samples: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Medians over the rounds of each arm's ratio to stock in the same round.

    Args:
        samples: By arm, one figure per round.
    """
    stock = samples[ARMS[0]]
    return {
        arm: round(
            statistics.median(
                figure / base for figure, base in zip(samples[arm], stock, strict=True)
            ),
            4,
        )
        for arm in ARMS[1:]
    }


def broken_limits(row: Mapping[str, Any]) -> list[str]:
    """Which ratios of a row pass the limits; each measured one is named like its limit."""
    where = f"{row['mode']}, {row['kv_cache']} KV cache"
    found = []
    for name, ratios in row["ratios"].items():
        ratio = ratios["helium"]
        if name.startswith("throughput") and ratio < MIN_THROUGHPUT:
            found.append(f"{where}: {name} is {ratio} of stock's, below {MIN_THROUGHPUT}")
        if name.startswith("p99") and ratio > MAX_P99:
            found.append(f"{where}: {name} is {ratio} of stock's, above {MAX_P99}")
    if row.get("equal_answers") is False:
        found.append(f"{where}: answers differ from stock's")
    return found


def in_turns(rounds: int) -> Iterable[str]:
    """The arms, round by round, each round beginning with the next one."""
    for number in range(rounds):
        start = number % len(ARMS)
        yield from ARMS[start:] + ARMS[:start]


# --- measurements --------------------------------------------------------------------------------


def measure_scheduler(kv_cache: str, rounds: int, seed: int) -> dict[str, Any]:
    """Ratios of the scheduler-only mode."""
    from benchmarks.prefix_cache.chat_traffic import conversations
    from benchmarks.prefix_cache.ordinary_scheduler import SchedulerArm
    from vllm_helium.simulator.figures import quantile

    traffic, num_blocks = SCHEDULER[kv_cache]
    drawn = conversations(seed=seed, **traffic)
    arms = {arm: SchedulerArm(arm.partition("_")[0], drawn, num_blocks) for arm in ARMS}
    counts = {arm: bench.replay().counts for arm, bench in arms.items()}  # and warm
    samples: dict[str, dict[str, list[float]]] = {}
    parts: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for arm in in_turns(rounds):
        replay = arms[arm].replay()
        figures = {
            "throughput_per_cpu_s": replay.counts["num_output_tokens"] / sum(replay.cpu_s.values()),
            "p99_step_cpu_s": quantile(replay.step_cpu_s, 0.99),
            "throughput_per_virtual_s": replay.counts["output_tokens_per_virtual_s"],
            "p99_virtual_latency_s": replay.counts["virtual_latency_p99_s"],
        }
        for name, figure in figures.items():
            samples.setdefault(name, {one: [] for one in ARMS})[arm].append(figure)
        parts[arm].append(replay.cpu_s)
    cpu_s = {
        arm: {
            part: round(statistics.median(one[part] for one in replays), 4) for part in replays[0]
        }
        for arm, replays in parts.items()
    }
    return _row(samples) | {"cpu_s": cpu_s, "counts": {arm: counts[arm] for arm in ARMS[:2]}}


def measure_engine(kv_cache: str, rounds: int, seed: int) -> dict[str, Any]:
    """Ratios of the real engine; every system is a process of its own."""
    from benchmarks.prefix_cache.ordinary_engine import EngineArm

    traffic, num_blocks = ENGINE[kv_cache]
    setting = {"traffic": traffic | {"seed": seed}, "num_blocks": num_blocks}
    arms = {arm: EngineArm(setting | {"system": arm.partition("_")[0]}) for arm in ARMS}
    replays: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    orders = itertools.cycle(ARMS[start:] + ARMS[:start] for start in range(len(ARMS)))
    while any(len(done) <= rounds for done in replays.values()):
        for arm in next(orders):
            if len(replays[arm]) <= rounds and (replay := arms[arm].turn()):
                replays[arm].append(replay)
    for bench in arms.values():
        bench.close()
    samples: dict[str, dict[str, list[float]]] = {}
    for arm, done in replays.items():
        for name, figure in engine_figures(done[1:]).items():  # the first round warms up
            samples.setdefault(name, {})[arm] = [figure]
    return _row(samples) | {
        "equal_answers": len({one["answers"] for done in replays.values() for one in done}) == 1,
        "counts": {arm: replays[arm][0]["counts"] for arm in ARMS[:2]},
    }


def engine_figures(replays: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Throughput in tokens per second and p99 latency in seconds, by both clocks.

    Args:
        replays: Of one system, as the engine reports them: the same steps, at different times.
    """
    from vllm_helium.simulator.figures import quantile

    figures = {}
    for clock in ("wall", "cpu"):
        by_step = zip(*(replay[f"{clock}_s"] for replay in replays), strict=True)
        ends = [0.0, *itertools.accumulate(statistics.median(times) for times in by_step)]
        latencies = [ends[last + 1] - ends[first] for first, last in replays[0]["calls"]]
        figures[f"throughput_{clock}"] = replays[0]["counts"]["output_tokens"] / ends[-1]
        figures[f"p99_{clock}_latency_s"] = quantile(latencies, 0.99)
    return figures


def _row(samples: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    return {
        "ratios": {name: ratios_to_stock(by_arm) for name, by_arm in samples.items()},
        "medians": {
            name: {arm: round(statistics.median(figures), 6) for arm, figures in by_arm.items()}
            for name, by_arm in samples.items()
        },
    }


if __name__ == "__main__":
    main()
