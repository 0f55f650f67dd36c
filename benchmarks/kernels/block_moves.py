"""Block moves in GB/s: ours, upstream's batched copy, the driver's, plain torch, a plain copy.

Usage: python -m benchmarks.kernels.block_moves [--layers 32] [--max-mib 1024] [--budget-s 240]
       [--output FILE]

Blocks lie scattered in a layer-major cache. Every byte moved counts once. The plain copy moves as
many bytes in one piece, which is the rate of the link; it is measured twice, and the distance of
its two medians is the noise floor (A/A). On a GPU, CUDA events time from the caller's stream to its
end, launch gaps included, and `submit_us` is the caller's own time. Every method of ours, and every
batched copy, is checked once per case, on spoiled memory. Without a GPU the CPU's paths run, on one
thread.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels.methods import MOVES, Case, Method, Setup
from benchmarks.results_file import environment, write_results
from vllm_helium import kernels
from vllm_helium.kernels.dispatch import use_backend

NUM_BLOCKS = (1, 4, 16, 64, 256, 1024, 4096)
BLOCK_KIB = (4, 16, 64)
METHOD_SECONDS = 0.1
MIN_REPEATS, MAX_REPEATS = 5, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--max-mib", type=int, default=1024, help="larger cases are left out")
    parser.add_argument("--budget-s", type=float, default=240, help="no case starts after this")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/block_moves.json"))
    arguments = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    # The driver's batched copy refuses the default stream.
    with torch.cuda.stream(torch.cuda.Stream()) if device == "cuda" else nullcontext():
        rows, skipped = measure_all(device, arguments)
    facts = environment() | device_facts(device)
    result = {"environment": facts, "skipped": skipped, "block_moves": rows}
    write_results(arguments.output, result)


def measure_all(device: str, arguments: argparse.Namespace) -> tuple[list, list]:
    """Returns a row per case, and what was left out with its reason."""
    skipped = [] if device == "cuda" else [{"what": "every GPU path", "reason": "no CUDA device"}]
    rows: list[dict[str, Any]] = []
    start = time.monotonic()
    for case in all_cases(arguments.layers, device):
        if case.num_bytes > arguments.max_mib * 2**20:
            skipped.append({"what": str(case), "reason": f"more than {arguments.max_mib} MiB"})
            continue
        if time.monotonic() - start > arguments.budget_s:
            skipped.append({"what": str(case), "reason": f"budget of {arguments.budget_s} s spent"})
            continue
        setup = Setup(case, device)
        rows.append(measure_case(setup))
        known = {entry["what"] for entry in skipped}
        skipped += [
            {"what": name, "reason": reason}
            for name, reason in setup.skipped.items()
            if name not in known
        ]
        print(json.dumps(rows[-1]), flush=True)
        del setup
        gc.collect()
    return rows, skipped


def all_cases(num_layers: int, device: str) -> list[Case]:
    moves = MOVES if device == "cuda" else ("store", "load", "copy")
    return [
        Case(move, num_blocks, kib * 1024, num_layers)
        for num_blocks in NUM_BLOCKS
        for kib in BLOCK_KIB
        for move in moves
    ]


def measure_case(setup: Setup) -> dict[str, Any]:
    case = setup.case
    row: dict[str, Any] = {
        "move": case.move,
        "num_blocks": case.num_blocks,
        "block_kib": case.block_bytes // 1024,
        "num_layers": case.num_layers,
        "mib": round(case.num_bytes / 2**20, 3),
        "methods": {},
    }
    for method in setup.methods():
        with use_backend(setup.device, method.backend) if method.backend else nullcontext():
            row["methods"][method.name] = measure(setup, method)
    plain, again = (row["methods"][name]["gb_per_s"] for name in ("plain_copy", "plain_copy_again"))
    row["noise_ratio"] = round(abs(plain - again) / max(plain, again), 4)
    return row


def measure(setup: Setup, method: Method) -> dict[str, Any]:
    if method.check:
        setup.spoil()
    method.run()
    synchronize(setup.device)
    if method.check and not method.check():
        raise SystemExit(f"{method.name} moved wrong bytes in {setup.case}")
    estimate, _ = time_once(setup, method)
    repeats = min(MAX_REPEATS, max(MIN_REPEATS, int(METHOD_SECONDS / max(estimate, 1e-6))))
    times, submits = zip(*(time_once(setup, method) for _ in range(repeats)), strict=True)
    median = statistics.median(times)
    return {
        "gb_per_s": round(setup.case.num_bytes / median / 1e9, 4),
        "ms": round(median * 1e3, 5),
        "submit_us": round(statistics.median(submits) * 1e6, 1),
        "repeats": repeats,
    }


def time_once(setup: Setup, method: Method) -> tuple[float, float]:
    """Returns the seconds of one move and of its submission."""
    if setup.device == "cpu":
        start = time.perf_counter()
        method.run()
        seconds = time.perf_counter() - start
        return seconds, seconds
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    start = time.perf_counter()
    method.run()
    submit = time.perf_counter() - start
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3, submit


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def device_facts(device: str) -> dict[str, Any]:
    """Returns what the environment does not say: the backend that runs, and the GPU."""
    found: dict[str, Any] = {"backend": kernels.describe(device)}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
        }
    return found


if __name__ == "__main__":
    main()
