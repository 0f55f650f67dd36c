"""One engine, and the systems that share it: a process that `run_workflows` starts.

    python benchmarks/gpu/engine_group.py JOB.json

The job names the engine, the systems, the workloads and the deadline. Results are appended to its
file line by line as they come, so whatever ends this process leaves what was measured.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu import plain_ops


def main(job_path: str) -> int:
    """Runs a job in this process."""
    job = json.loads(Path(job_path).read_text())
    notes = prepare(job)
    from benchmarks.gpu import group_runs  # imports vLLM, which reads all of the above

    group_runs.run_group(job, notes)
    return 0


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """Sets the process up before vLLM is imported; returns what the report should say of it.

    Changes the job's ``mode`` where an operator that stands in for a compiled one is wrong.
    """
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        "VLLM_USE_DEEP_GEMM": "0",
    }
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if job["device"] == "cpu":
        return {"plain_operators": [], "wrong_operators": {}}
    registered = plain_ops.install()
    wrong = plain_ops.check_on_device() if registered else {}
    mode = job["mode"]
    if "get_cuda_view_from_cpu_tensor" in wrong:
        mode["v2_runner"] = False  # it alone reads host memory from the device
    if "weak_ref_tensor" in wrong:
        mode["graphs"] = False
    if set(wrong) & {"rms_norm", "fused_add_rms_norm", "silu_and_mul", "rotary_embedding"}:
        mode["plain_kernels"] = False
    if not mode["v2_runner"]:
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    return {"plain_operators": registered, "wrong_operators": wrong}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
