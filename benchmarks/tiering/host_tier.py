"""The host tier against none, against vLLM's own CPU offload, and against an oracle.

    python -m benchmarks.tiering.host_tier --case trading trading-distinct --cut 4 8

Every arm serves the same plan in the same order; they differ in what happens to KV that the device
has no room for:

- ``none``: it is given up;
- ``tier``: this fork's host tier; ``tier-ahead`` also brings blocks back ahead of their requests;
- ``oracle``: a host that holds everything over a link that costs nothing;
- ``upstream``: vLLM's simple CPU offload, which stores every full block, evicts by recency and
  loads at admission, over vLLM's own index (which it needs); ``upstream-none`` is that index alone.

Two oracles bound the gain. *Offline*: block hits that Belady's policy would have had on the arm's
own accesses, all known in advance, with one cache as large as device and host together; no policy
for the same two capacities has more full blocks, for a hit in either saves the same computing (hits
inside a block come on top: a share may exceed 1). *Free link*: the arm ``oracle``, which bounds
what moving blocks better can gain in time; orders of admission differ a little between arms, so
that an arm may beat it.
Figures are virtual and the same for the same arguments. Cases in the output file are kept.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.baselines.systems import SYSTEMS, System
from benchmarks.gpu.kit import revision
from benchmarks.results_file import environment, write_results
from benchmarks.simulate import aligned
from benchmarks.simulated_run import Setting, run_system
from helium.cost import RooflineModel

HOST_GIB = 64.0
"""Per device: an eighth of the usual 512 GiB beside eight devices."""

ORACLE_GIB = 1024.0
FREE_LINK = 1e18

CASES: Mapping[str, Setting] = {
    "trading": Setting("trading-8b", rows=16),
    "trading-distinct": Setting("trading-8b", rows=16, is_distinct=True),
    "trading-4b": Setting("trading-4b", rows=16),
    "trading-4b-distinct": Setting("trading-4b", rows=16, is_distinct=True),
    # The profiles of the sharing sweep whose working set exceeds the cut cache.
    "sharing-p3": Setting("sharing-p3", rows=48),
    "sharing-p5": Setting("sharing-p5", rows=48),
    "sharing-p6": Setting("sharing-p6", rows=48),
}
ARMS = ("none", "tier", "tier-ahead", "oracle", "upstream-none", "upstream")


def arm_system(arm: str, host_gib: float) -> System:
    """Returns the system of an arm; all of them plan and order alike."""
    ours: dict[str, Any] = {
        "none": {},
        "tier": {"host_gib": host_gib, "host_prefetch": False},
        "tier-ahead": {"host_gib": host_gib, "host_prefetch": True},
        "oracle": {"host_gib": ORACLE_GIB, "host_prefetch": False},
        "upstream-none": {"prefix_index": "stock"},
        "upstream": {"prefix_index": "stock"},
    }[arm]
    connector = None
    if arm == "upstream":
        connector = {
            "kv_connector": "SimpleCPUOffloadConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"cpu_bytes_to_use": int(host_gib * 2**30)},
        }
    return replace(SYSTEMS["helium"], name=arm, helium=ours, kv_connector=connector)


def run_case(name: str, cut: int, rows: int | None, host_gib: float) -> dict[str, Any]:
    """Runs every arm of a case with the device's KV cut to 1/``cut``; returns the figures."""
    setting = CASES[name] if rows is None else replace(CASES[name], rows=rows)
    cost = RooflineModel.preset(setting.device, setting.model)
    num_blocks = cost.kv_capacity_tokens // 16 // cut
    arms = {}
    for arm in ARMS:
        one = replace(
            setting,
            num_blocks=num_blocks,
            has_trace=True,
            link_bandwidth=FREE_LINK if arm == "oracle" else None,
        )
        result = run_system(one, arm_system(arm, host_gib))
        arms[arm] = {**result["figures"], "wall_s": result["wall"]["run_s"]}
        gc.collect()
    return {
        "case": name,
        "cut": cut,
        "rows": setting.num_rows,
        "host_gib": host_gib,
        "num_blocks": num_blocks,
        "arms": arms,
        "shares": {arm: shares(arms, arm) for arm in ("tier", "tier-ahead")},
    }


def shares(arms: Mapping[str, Mapping[str, Any]], arm: str) -> dict[str, float | None]:
    """Returns what share of the oracle's gain an arm has; ``None`` where there is none to gain."""
    none, oracle, one = arms["none"], arms["oracle"], arms[arm]
    offline_tokens = one["offline_bound"]["num_hits_two_tiers"] * 16
    return {
        "offline_cached_ratio": _share(
            one["num_cached_tokens"] - none["num_cached_tokens"],
            offline_tokens - none["num_cached_tokens"],
        ),
        "free_link_prefill_ratio": _share(
            none["num_prefill_tokens"] - one["num_prefill_tokens"],
            none["num_prefill_tokens"] - oracle["num_prefill_tokens"],
        ),
        "free_link_makespan_ratio": _share(
            none["makespan_s"] - one["makespan_s"], none["makespan_s"] - oracle["makespan_s"]
        ),
        "prefetch_used_ratio": _share(
            one["host_link"].get("num_prefetches_used", 0),
            one["host_link"].get("num_prefetches_used", 0)
            + one["host_link"].get("num_prefetches_wasted", 0),
        ),
    }


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def table(case: Mapping[str, Any]) -> str:
    """Returns a case as text; changes are to the arm without a host tier on the same index."""
    columns = ["makespan s", "change %", "prefill k", "change %", "hit %", "preempted", "stored"]
    rows = [["arm", *columns, "loaded", "ahead", "delay s", "p50 s", "p95 s"]]
    for arm, figures in case["arms"].items():
        base = case["arms"]["upstream-none" if arm.startswith("upstream") else "none"]
        link = figures["host_link"]
        rows.append(
            [
                arm,
                f"{figures['makespan_s']:.1f}",
                _change(figures, base, "makespan_s"),
                f"{figures['num_prefill_tokens'] / 1e3:.0f}",
                _change(figures, base, "num_prefill_tokens"),
                f"{100 * figures['hit_ratio']:.1f}",
                str(figures["num_preemptions"]),
                str(link["num_stored_blocks"]),
                str(link["num_loaded_blocks"]),
                str(link["num_prefetched_blocks"]),
                f"{link['delay_s']:.2f}",
                f"{figures['latency_p50_s']:.1f}",
                f"{figures['latency_p95_s']:.1f}",
            ]
        )
    lines = aligned(rows)
    title = f"{case['case']}, {case['rows']} rows, KV cut to 1/{case['cut']}"
    for arm, found in case["shares"].items():
        values = ", ".join(
            f"{name.removesuffix('_ratio')} {'-' if value is None else f'{100 * value:.1f} %'}"
            for name, value in found.items()
        )
        lines.append(f"{arm}: of the oracle's gain in {values}")
    return "\n".join([f"{title} ({case['num_blocks']} blocks)", *lines, ""])


def markdown(report: Mapping[str, Any]) -> str:
    """Returns all cases as a page."""
    environment = report["environment"]
    lines = ["# Host tier", "", *__doc__.strip().splitlines()[4:], ""]
    lines += [f"Made with vLLM {environment['vllm']} by `{environment['command']}`.", ""]
    for case in report["cases"]:
        title, *rest = table(case).strip().splitlines()
        lines += [f"## {title}", "", "```", *rest, "```", ""]
    return "\n".join(lines)


def _change(figures: Mapping[str, Any], base: Mapping[str, Any], name: str) -> str:
    return f"{100 * (figures[name] / base[name] - 1):+.1f}" if base[name] else "-"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tiering.host_tier",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--case", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--cut", nargs="+", type=int, default=[2, 4, 8], metavar="N")
    parser.add_argument("--rows", type=int, help="instead of the case's own number")
    parser.add_argument("--host-gib", type=float, default=HOST_GIB)
    parser.add_argument("--again", action="store_true", help="run what the file holds already, too")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/tiering_host_tier.json")
    )
    options = parser.parse_args(arguments)
    report: dict[str, Any] = {"cases": []}
    if options.output.exists():
        report = json.loads(options.output.read_text())
    for name in options.case:
        for cut in options.cut:
            rows = CASES[name].num_rows if options.rows is None else options.rows
            key = (name, cut, rows, options.host_gib)
            found = [case for case in report["cases"] if _key(case) == key]
            if found and not options.again:
                print(table(found[0]), flush=True)
                continue
            case = run_case(name, cut, options.rows, options.host_gib)
            case["revision"] = revision()
            command = "python -m benchmarks.tiering.host_tier"
            report["environment"] = environment() | {"command": command}
            print(table(case), flush=True)
            report["cases"] = [c for c in report["cases"] if _key(c) != key] + [case]
            write_results(options.output, report)
            options.output.with_suffix(".md").write_text(markdown(report))
    return 0


def _key(case: Mapping[str, Any]) -> tuple[Any, ...]:
    return case["case"], case["cut"], case["rows"], case["host_gib"]


if __name__ == "__main__":
    sys.exit(main())
