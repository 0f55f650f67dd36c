"""Runs benchmark workflows in virtual time: systems x devices x engines, one table and one JSON.

    python -m benchmarks.simulate --workflow trading-8b --rows 16 --system langgraph --system helium

Figures are virtual: they follow from the scheduler's decisions and the roofline model, and are the
same bytes for the same arguments. Wall times are kept apart from them.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.baselines.systems import SYSTEMS, system
from benchmarks.results_file import environment, write_results
from benchmarks.simulated_run import Setting, run_system
from benchmarks.workflows import WORKFLOWS
from helium.cost import DEVICES, MODELS, RooflineModel, load_calibration
from helium.errors import ConfigError, HeliumError

_DEFAULT_SYSTEMS = ("op_wise", "langgraph", "lspf", "kvflow", "helium")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for."""
    parser = _parser()
    options = parser.parse_args(arguments)
    settings = [
        Setting(
            workflow=workflow,
            rows=options.rows,
            is_distinct=options.distinct,
            scale=options.scale,
            max_tokens=options.max_tokens,
            seed=options.seed,
            device=device,
            model=model,
            num_engines=engines,
            num_blocks=options.blocks,
            is_warm=options.warm,
            has_trace=options.trace,
            num_rounds=options.rounds,
            is_serial=options.serial,
            data=options.data,
        )
        for workflow in options.workflow
        for device in options.device
        for model in options.model
        for engines in options.engines
    ]
    devices = dict(DEVICES)
    try:
        if options.calibration is not None:
            calibrate(options.calibration, options.device)
        systems = [system(name) for name in options.system or _DEFAULT_SYSTEMS]
        results = []
        gc.freeze()  # what is loaded by now stays; collections need not look at it
        for setting in settings:
            print(setting.title(), flush=True)
            rows = []
            for one in systems:
                rows.append(run_system(setting, one))
                gc.collect()
            results += rows
            print(table(rows), flush=True)
    except HeliumError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    finally:
        gc.unfreeze()
        DEVICES.update(devices)
    if options.output is not None:
        write_results(options.output, {"environment": environment(), "results": results})
    return 0


def calibrate(path: Path, devices: Sequence[str]) -> None:
    """Replaces a device's assumed efficiency by what was measured on it, in this process.

    Raises:
        ConfigError: The file cannot be read, or is of a device that is not simulated.
    """
    found = load_calibration(path)
    if found.device not in devices:
        raise ConfigError(
            f"calibration {str(path)!r} is of {found.device}, simulated are {list(devices)}; "
            f"pass --device {found.device}"
        )
    DEVICES[found.device] = found.apply(RooflineModel.preset(found.device, found.model)).device
    ratios = f"{found.flops_ratio:.3f} of the FLOP/s, {found.bandwidth_ratio:.3f} of the bandwidth"
    print(
        f"{found.device} as measured: {ratios}, {found.step_overhead_ms:.2f} ms a step", flush=True
    )


def table(results: Sequence[dict[str, Any]]) -> str:
    """Returns the results of one setting as text; ratios are to our first system, if any."""
    by_name = {result["system"]["name"]: result["figures"] for result in results}
    reference = next((n for n in by_name if n.startswith("helium")), next(iter(by_name)))
    columns = {
        "makespan s": lambda f: f"{f['makespan_s']:.1f}",
        f"x {reference.partition(':')[0]}": lambda f: (
            f"{f['makespan_s'] / by_name[reference]['makespan_s']:.2f}"
        ),
        "calls": lambda f: str(f["num_calls"]),
        "prefill k": lambda f: f"{f['num_prefill_tokens'] / 1e3:.0f}",
        "hit %": lambda f: f"{100 * f['hit_ratio']:.1f}",
        "output k": lambda f: f"{f['num_output_tokens'] / 1e3:.0f}",
        "evicted": lambda f: str(f["num_evictions"]),
        "preempted": lambda f: str(f["num_preemptions"]),
        "p50 s": lambda f: f"{f['latency_p50_s']:.1f}",
        "p95 s": lambda f: f"{f['latency_p95_s']:.1f}",
    }
    if "offline_bound" in next(iter(by_name.values())):
        columns["bound %"] = lambda f: f"{100 * f['offline_bound']['hit_ratio']:.1f}"
    rows = [["system", *columns, "wall s"]]
    for result in results:
        figures = result["figures"]
        cells = [show(figures) for show in columns.values()]
        rows.append([result["system"]["name"], *cells, f"{result['wall']['run_s']:.0f}"])
    return "\n".join(aligned(rows)) + "\n"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns rows of cells as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    devices = [name for name in DEVICES if name != "cpu"]
    add("--workflow", nargs="+", default=["trading-8b"], choices=list(WORKFLOWS), metavar="NAME")
    add("--rows", type=int, help="rows of the batch; the workflow's own number by default")
    add("--distinct", action="store_true", help="agents that are all different")
    add("--scale", type=float, default=1.0, help="factor on the lengths of all texts")
    add("--max-tokens", type=int, help="limit of every answer; the workflow's own by default")
    add(
        "--system",
        action="append",
        help=f"repeatable; {', '.join(SYSTEMS)}, or one of them with overrides: name:{{JSON}}",
    )
    add("--device", nargs="+", default=["H100-80GB"], choices=devices)
    add("--model", nargs="+", default=["Qwen3-8B"], choices=list(MODELS))
    add("--engines", nargs="+", type=int, default=[1])
    add("--blocks", type=int, help="KV blocks of each engine, instead of the device's memory")
    add("--seed", type=int, default=0)
    add("--rounds", type=int, help="of a workflow's debates; its own number by default")
    add("--calibration", type=Path, help="efficiency as benchmarks/gpu measured it, a JSON file")
    add("--serial", action="store_true", help="arithmetic and memory traffic do not overlap")
    add("--data", help="folder of real data sets; see benchmarks/workflows/datasets.py")
    add("--warm", action="store_true", help="run another day first; its outputs may be reused")
    add("--trace", action="store_true", help="compute the offline bound on block hits as well")
    add("--output", type=Path, help="JSON file to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
