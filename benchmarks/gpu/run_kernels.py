"""Everything about the kernels that needs a GPU, in one command and within five minutes.

Usage: python benchmarks/gpu/run_kernels.py [--output DIR]

Needs torch with CUDA, Triton and pytest, and no network. Compiles the CUDA library for this GPU if
nvcc is there, runs the GPU's own tests, the block-move benchmark, then tests/kernels under the
interpreter. Writes run_kernels.json (what ran, how it ended, how long it took), tests_*.log and
block_moves.json. The exit status is 0 only if every step that ran succeeded. On a machine without a
GPU the same steps run on the CPU's paths, and the report says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu import kit

ROOT = kit.ROOT
LIBRARY = ROOT / "vllm_helium" / "helium_cuda.so"
LIMIT_S = 300
BUILD_S, TESTS_S, SLOW_TESTS_S, BENCHMARK_S = 40, 70, 30, 130
HOST_TESTS_S = 140
MIN_TESTS_S = 10
MARGIN_S = 25
"""What the benchmark may need besides its budget: imports, and the case it is in at the end."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "gpu")
    output = parser.parse_args().output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    steps: list[dict[str, Any]] = []

    steps.append(build_library(output))
    on_gpu = not steps[0]["gpu_missing"]
    # A GPU's own tests and figures first: they are the reason for the run.
    if on_gpu:
        steps.append(run_tests("gpu", "gpu and not slow", TESTS_S, output))
    left_s = LIMIT_S - (time.monotonic() - started)
    budget_s = max(20.0, min(BENCHMARK_S, left_s - 2 * MARGIN_S))
    command = [sys.executable, "-m", "benchmarks.kernels.block_moves"]
    command += ["--budget-s", f"{budget_s:.0f}", "--output", str(output / "block_moves.json")]
    command += [] if on_gpu else ["--layers", "8", "--max-mib", "32"]
    steps.append(run_step("benchmark", command, budget_s + MARGIN_S, output))
    selections = [("slow_gpu", "gpu and slow", SLOW_TESTS_S)] if on_gpu else []
    selections.append(("host", "not gpu and not slow", TESTS_S if on_gpu else HOST_TESTS_S))
    for name, marker, limit_s in selections:
        left_s = LIMIT_S - (time.monotonic() - started)
        if left_s < MIN_TESTS_S:
            reason = f"{max(0.0, left_s):.0f} s left"
            steps.append({"name": f"tests_{name}", "status": "skipped", "reason": reason})
            continue
        steps.append(run_tests(name, marker, min(limit_s, left_s), output))

    passed = all(step["status"] in ("passed", "skipped") for step in steps)
    report = {
        "passed": passed,
        "on_gpu": on_gpu,
        "seconds": round(time.monotonic() - started, 1),
        "steps": steps,
    }
    (output / "run_kernels.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({"passed": passed, "on_gpu": on_gpu, "seconds": report["seconds"]}))
    return 0 if passed else 1


def build_library(output: Path) -> dict[str, Any]:
    """Compiles csrc/cuda for this GPU; a library that is there already is built anew."""
    probe = "import torch; print(*torch.cuda.get_device_capability())"
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    if found.returncode:
        reason = "no CUDA device" if "CUDA" in found.stderr else found.stderr[-300:]
        return {"name": "build", "status": "skipped", "reason": reason, "gpu_missing": True}
    if shutil.which("nvcc") is None:
        reason = "nvcc is not installed"
        return {"name": "build", "status": "skipped", "reason": reason, "gpu_missing": False}
    architecture = "".join(found.stdout.split())
    command = ["nvcc", "-std=c++17", "-O3", f"-arch=sm_{architecture}", "-shared"]
    command += ["-Xcompiler", "-fPIC", f"-I{ROOT / 'csrc' / 'include'}"]
    command += [str(source) for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu"))]
    step = run_step("build", [*command, "-o", str(LIBRARY)], BUILD_S, output)
    return {**step, "architecture": architecture, "gpu_missing": False}


def run_tests(name: str, marker: str, limit_s: float, output: Path) -> dict[str, Any]:
    """Runs the kernels' tests with a marker."""
    if importlib.util.find_spec("pytest") is None:
        return {"name": f"tests_{name}", "status": "failed", "reason": "pytest is missing"}
    command = [sys.executable, "-m", "pytest", "tests/kernels", "-q", "-m", marker]
    command += ["-p", "no:cacheprovider", "--durations=5"]
    return run_step(f"tests_{name}", command, limit_s, output)


def run_step(name: str, command: list[str], limit_s: float, output: Path) -> dict[str, Any]:
    """Runs one command in the repository, its output in a log file."""
    print(f"{name}: at most {limit_s:.0f} s", flush=True)
    log = output / f"{name}.log"
    environment = kit.child_environment(OMP_NUM_THREADS="1")
    started = time.monotonic()
    with log.open("w") as stream:
        try:
            code = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=limit_s,
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
    lines = [line for line in log.read_text().splitlines() if line.strip()]
    return {
        "name": name,
        "status": "passed" if code == 0 else "timed out" if code is None else "failed",
        "code": code,
        "seconds": round(time.monotonic() - started, 1),
        "last_line": lines[-1][:300] if lines else "",
    }


if __name__ == "__main__":
    sys.exit(main())
