"""Trading and MapReduce on this machine's GPU, every system that needs no network, in one command.

    python3 benchmarks/gpu/run_workflows.py --output DIR [--seconds 480]

Runs from a checkout or from the archive that ``python -m benchmarks.gpu.pack`` makes; there vLLM's
compiled files are missing, and Triton stands in for what a dense model needs (`plain_ops`). The
model has the shape of Qwen3-8B and dummy weights, answers have the lengths of the workload.

Systems are grouped by the engine they need, and a group is a process. Writes, into DIR:
``run_workflows.json`` (environment, per system and workload the makespan, tokens and latencies,
what was skipped and why), ``calibration.json`` (the cost model's efficiency factors as fitted to
the steps, for ``python -m benchmarks.simulate --calibration``) and the groups' logs. With
``--device cpu`` a tiny model tries the same program without a GPU.

The GPU's path has run nowhere yet; README.md of this folder says what was tried.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu import kit

sys.path[1:1] = kit.paths()[1:]

SYSTEMS = (
    "langgraph", "helium", "helium-on-stock", "op_wise", "dataflow", "random", "lspf", "kvflow",
    "helium-no-cse", "helium-no-plan", "helium-scheduling-only", "helium-no-order", "query_wise",
)  # fmt: skip
"""In order of importance: where time runs out, the last ones are skipped. The first one runs twice
on its engine, and the distance of the two is the noise floor (A/A)."""

TIER_BLOCKS = 2048
"""KV blocks of the two engines, with and without a host tier, that must give blocks up: 32,768
tokens, several times less than the rows in flight read."""

MIN_GROUP_S = {"cuda": 45.0, "cpu": 30.0}
"""Below which no engine is started any more."""

MIN_RUN_S = 5.0
END_S = 10.0
"""Left at the end for the report."""

MODES = (
    {"graphs": True, "v2_runner": True, "plain_kernels": True},
    {"graphs": False, "v2_runner": True, "plain_kernels": True},
    {"graphs": False, "v2_runner": False, "plain_kernels": False},
)
"""Ways to start an engine on a GPU, the fastest first; the next one is tried where one fails."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs everything; returns 0 where at least one system was measured."""
    options = parse(arguments)
    started_s = time.time()
    options.output.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "environment": kit.machine() | {"device": options.device, "model": options.model},
        "workloads": [],
        "attempts": [],
        "runs": [],
        "skipped": [],
    }
    end_s = started_s + options.seconds - END_S
    try:
        run_groups(options, report, end_s)
    finally:
        steps = report.pop("steps", [])
        add_summary(report, steps, options)
        report["seconds"] = round(time.time() - started_s, 1)
        path = options.output / "run_workflows.json"
        path.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report["runs"]))
    for entry in report["skipped"]:
        print("skipped", ", ".join(f"{key}: {value}" for key, value in entry.items()))
    return 0 if report["runs"] else 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder of the results")
    add("--seconds", type=float, default=480, help="time for everything")
    add("--run-limit", type=float, default=60, help="seconds after which a run is cut off")
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--model", choices=("Qwen3-8B", "tiny"), help="shape; tiny on the CPU by default")
    add("--system", action="append", help="repeatable; see benchmarks.baselines.systems")
    add("--workload", action="append", help="repeatable label; all by default")
    add("--rows", type=int, help="rows of every workload")
    add("--max-tokens", type=int, help="limit of every answer")
    add("--scale", type=float, help="factor on the published lengths of texts")
    add("--distinct", action="store_true", help="agents that are all different")
    add("--kv-blocks", type=int, help="KV blocks of the engine, instead of what fits")
    add("--host-gib", type=float, help="host memory of the engine with a host tier; 0 for none")
    options = parser.parse_args(arguments)
    options.output = options.output.resolve()
    options.model = options.model or ("Qwen3-8B" if options.device == "cuda" else "tiny")
    return options


def run_groups(options: argparse.Namespace, report: dict[str, Any], end_s: float) -> None:
    """Starts a process per engine and collects what it measured."""
    if options.device == "cuda" and (reason := gpu_missing()):
        report["skipped"].append({"what": "everything", "reason": reason})
        return
    from benchmarks.gpu import workloads

    known = workloads.SMALL if options.device == "cuda" else workloads.TINY
    entries = chosen_workloads(options, known)
    report["workloads"] = entries
    try:
        model = write_model(options, entries)
        has_core = build_core(report)
        groups = grouped(options.system or SYSTEMS, has_core)
        host_gib = options.host_gib
        if host_gib is None and options.device == "cuda" and not options.system:
            host_gib = 16.0
        if host_gib and (reason := tier_missing(has_core)):
            report["skipped"].append({"what": "the host tier", "reason": reason})
        elif host_gib:
            groups[2:2] = tier_groups(host_gib, options.kv_blocks or TIER_BLOCKS)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        report["skipped"].append({"what": "everything", "reason": reason[:1000]})
        return
    steps = report["steps"] = []
    modes = list(MODES) if options.device == "cuda" else [{}]
    results = options.output / "results.jsonl"
    results.unlink(missing_ok=True)
    for position, group in enumerate(groups):
        while modes:
            left_s = end_s - time.time()
            if left_s < MIN_GROUP_S[options.device]:
                reason = f"no time for another engine: {max(0.0, left_s):.0f} s left"
                report["skipped"].append({"what": group["systems"], "reason": reason})
                break
            share_s = left_s * share(groups[position:], MIN_GROUP_S[options.device])
            job = group | {
                "group": position,
                "model": str(model),
                "device": options.device,
                "mode": dict(modes[0]),
                "engine": engine_arguments(options) | group.get("engine", {}),
                "workloads": entries,
                "results": str(results),
                "deadline_s": time.time() + share_s,
                "run_limit_s": options.run_limit,
                "min_run_s": MIN_RUN_S,
            }
            lines, attempt = run_job(job, share_s + END_S / 2, options.output)
            report["attempts"].append(attempt)
            collect(lines, report, steps, job["engine"])
            if any(line["kind"] in ("run", "skipped", "failed") for line in lines):
                break
            if len(modes) == 1:
                what = {"what": group["systems"], "reason": f"no engine: {attempt['end'][-300:]}"}
                report["skipped"].append(what)
                break
            modes.pop(0)


def gpu_missing() -> str | None:
    """Returns why there is no GPU to use, in a process of its own."""
    probe = "import torch; torch.zeros(1, device='cuda'); import triton"
    found = subprocess.run(
        [sys.executable, "-c", probe], env=kit.child_environment(), capture_output=True, text=True
    )
    return found.stderr.strip().splitlines()[-1] if found.returncode else None


def build_core(report: dict[str, Any]) -> bool:
    """Whether the compiled core can be imported; compiles it where it cannot."""
    probe = [sys.executable, "-c", "import vllm_helium._core"]
    environment = kit.child_environment()
    found = subprocess.run(probe, env=environment, capture_output=True, text=True)
    if not found.returncode:
        return True
    folder = kit.ROOT / "build" / "core"
    commands = [
        ["cmake", "-S", str(kit.ROOT), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release",
         f"-DPython_EXECUTABLE={sys.executable}"],
        ["cmake", "--build", str(folder), "-j"],
    ]  # fmt: skip
    reason = found.stderr.strip().splitlines()[-1]
    try:
        for command in commands:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=180)
        for library in folder.glob("_core*.so"):
            (kit.ROOT / "vllm_helium" / library.name).write_bytes(library.read_bytes())
        if not subprocess.run(probe, env=environment, capture_output=True).returncode:
            report["environment"]["core"] = "compiled on this machine"
            return True
        reason += "; what was compiled here cannot be imported either"
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        reason += f"; compiling it failed: {said[-300:]}"
    report["skipped"].append(
        {"what": "the prefix tree: upstream's index is used", "reason": reason}
    )
    return False


def grouped(names: Sequence[str], has_core: bool) -> list[dict[str, Any]]:
    """Groups systems by the engine they need, in order of each group's first system."""
    from benchmarks.baselines.systems import system

    groups: dict[str, dict[str, Any]] = {}
    for name in names:
        one = system(name)
        helium = False if one.helium is None else dict(one.helium)
        if isinstance(helium, dict) and not has_core:
            helium["prefix_index"] = "stock"
        key = json.dumps([one.scheduler_cls, helium], sort_keys=True)
        entry = groups.setdefault(
            key,
            {
                "scheduler_cls": one.scheduler_cls,
                "helium": helium if helium is False else helium or True,
                "systems": [],
            },
        )
        entry["systems"].append(name)
    result = list(groups.values())
    result[0]["systems"] = [*result[0]["systems"], result[0]["systems"][0]]
    return result


def tier_missing(has_core: bool) -> str | None:
    """Returns why there can be no host tier in this code."""
    from dataclasses import fields

    from vllm_helium.config import HeliumConfig

    if "host_gib" not in {field.name for field in fields(HeliumConfig)}:
        return "this code has none"
    return None if has_core else "it needs the prefix tree, and that the compiled core"


def tier_groups(host_gib: float, num_blocks: int) -> list[dict[str, Any]]:
    """Returns two engines of ours with little KV memory, with and without host memory beside it."""
    tier = {"host_gib": float(host_gib)}
    with_tier = "helium:" + json.dumps({"helium": tier})
    common = {"scheduler_cls": None, "engine": {"num_gpu_blocks_override": num_blocks}}
    return [
        {**common, "helium": True, "systems": ["helium"]},
        {**common, "helium": tier, "systems": [with_tier]},
    ]


def share(groups: Sequence[dict[str, Any]], start_s: float) -> float:
    """Returns the first group's share of the time, by its systems and an engine's start."""
    weights = [start_s / 15 + len(group["systems"]) for group in groups]
    return weights[0] / sum(weights)


def chosen_workloads(
    options: argparse.Namespace, known: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    labels = [entry["label"] for entry in known]
    wanted = options.workload or labels
    if unknown := set(wanted) - set(labels):
        raise SystemExit(f"--workload: unknown {sorted(unknown)}; known: {labels}")
    changes = {
        "rows": options.rows,
        "max_tokens": options.max_tokens,
        "scale": options.scale,
        "distinct": options.distinct or None,
    }
    changes = {key: value for key, value in changes.items() if value is not None}
    return [{**entry, **changes} for entry in known if entry["label"] in wanted]


def write_model(options: argparse.Namespace, entries: Sequence[dict[str, Any]]) -> Path:
    """Writes the model's folder, with a tokenizer that knows the workloads' words."""
    from benchmarks.gpu import model_folder, workloads

    words = workloads.all_words([workloads.build(entry) for entry in entries])
    return model_folder.write_model(options.output / "model", options.model, words)


def engine_arguments(options: argparse.Namespace) -> dict[str, Any]:
    if options.kv_blocks is None:
        return {}
    changes: dict[str, Any] = {"num_gpu_blocks_override": options.kv_blocks}
    return changes


def run_job(
    job: dict[str, Any], limit_s: float, output: Path
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Runs a group's process; returns its results and how it ended."""
    name = f"group_{job['group']}"
    path, log = output / f"{name}.json", output / f"{name}.log"
    path.write_text(json.dumps(job, indent=1) + "\n")
    results = Path(job["results"])
    size = results.stat().st_size if results.exists() else 0
    command = [sys.executable, str(Path(__file__).with_name("engine_group.py")), str(path)]
    print(f"{name}: {', '.join(job['systems'])}; at most {limit_s:.0f} s", flush=True)
    started_s = time.monotonic()
    with log.open("w") as stream:
        process = subprocess.Popen(
            command,
            env=kit.child_environment(),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        end_session(process)
    lines = []
    if results.exists():
        with results.open() as stream:
            stream.seek(size)
            lines = [json.loads(line) for line in stream if line.endswith("\n")]
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    attempt = {
        "group": job["group"],
        "systems": job["systems"],
        "mode": job["mode"],
        "code": code,
        "seconds": round(time.monotonic() - started_s, 1),
        "end": "\n".join(said[-25:])[-3000:] if code != 0 else "",
    }
    return lines, attempt


def end_session(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def collect(
    lines: Sequence[dict[str, Any]],
    report: dict[str, Any],
    steps: list[list],
    engine: dict[str, Any],
) -> None:
    """Sorts a group's lines into the report; ``engine`` is what its engine was told specially."""
    for entry in lines:
        line = {key: value for key, value in entry.items() if key != "kind"}
        kind = entry["kind"]
        if kind == "run":
            line["num_kv_blocks"] = engine.get("num_gpu_blocks_override")
            report["runs"].append(line)
        elif kind == "steps":
            steps.extend(line["steps"])
        elif kind in ("skipped", "failed"):
            what = f"{line['system']} on {line['workload']}"
            report["skipped"].append({"what": what, "reason": line["reason"], "status": kind})
        elif kind in ("engine", "warm_up"):
            report.setdefault("engines", []).append({"kind": kind, **line})
            if line.get("card"):
                report["environment"]["card"] = line["card"]


def add_summary(
    report: dict[str, Any], steps: Sequence[Sequence[float]], options: argparse.Namespace
) -> None:
    """Adds ratios, the noise floor and the calibration, or says why there is none."""
    for run in report["runs"]:
        place = run["workload"], run["num_kv_blocks"]
        same = [r for r in report["runs"] if (r["workload"], r["num_kv_blocks"]) == place]
        first = next((r for r in same if r["system"] == same[0]["system"]), None)
        if first and first["status"] == run["status"] == "done":
            run["ratio_to_first"] = run["makespan_s"] / first["makespan_s"]
    report["noise"] = [
        {"workload": a["workload"], "system": a["system"],
         "ratio": abs(a["makespan_s"] - b["makespan_s"]) / max(a["makespan_s"], b["makespan_s"])}
        for index, a in enumerate(report["runs"])
        for b in report["runs"][index + 1 :]
        if (a["group"], a["workload"], a["system"]) == (b["group"], b["workload"], b["system"])
        and a["status"] == b["status"] == "done"
    ]  # fmt: skip
    if not steps:
        return
    from helium.cost import MeasuredStep, device_of_card, fit_calibration
    from helium.errors import HeliumError

    card = report["environment"].get("card") or {}
    device = "cpu" if options.device == "cpu" else None
    if card:
        device = device_of_card(card["card"], card["memory_bytes"])
    try:
        if options.model == "tiny" or device is None:
            known = f"{options.model} on {card.get('card', options.device)}"
            reason = f"the cost model has no figures of {known}"
            report["skipped"].append({"what": "calibration", "reason": reason})
            return
        measured = [MeasuredStep(int(p), c, int(d), int(t), ms) for p, c, d, t, ms in steps]
        found = fit_calibration(measured, device, options.model, report["environment"])
    except HeliumError as error:
        report["skipped"].append({"what": "calibration", "reason": str(error)})
        return
    (options.output / "calibration.json").write_bytes(found.to_json())
    report["calibration"] = json.loads(found.to_json())


def named(run: dict[str, Any]) -> str:
    """Returns a run's system, with the KV blocks where they were set."""
    blocks = f", {run['num_kv_blocks']} blocks" if run["num_kv_blocks"] else ""
    name = (
        run["system"].replace('"', "").replace("helium:{helium: {", "helium {").replace("}}", "}")
    )
    return (name + blocks)[:37]


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Returns the runs as text."""
    lines = [
        f"{'workload':16}{'system':38}{'s':>8}{'calls':>7}{'prefill':>9}{'cached':>9}"
        f"{'output':>8}{'p50 s':>8}{'p95 s':>8}  status"
    ]
    for run in runs:
        p50, p95 = (run[key] or 0.0 for key in ("latency_p50_s", "latency_p95_s"))
        lines.append(
            f"{run['workload']:16}{named(run):38}{run['makespan_s']:8.2f}{run['num_calls']:7}"
            f"{run['num_prefill_tokens']:9}{run['num_cached_tokens']:9}"
            f"{run['num_output_tokens']:8}{p50:8.2f}{p95:8.2f}  {run['status']}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
