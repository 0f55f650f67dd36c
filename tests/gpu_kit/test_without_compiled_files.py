"""What the kit relies on where vLLM's compiled files are missing, in a process that lacks them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")
pytest.importorskip("triton", reason="Triton is not installed")

PROGRAM = Path(__file__).with_name("without_compiled_files.py")


@pytest.mark.slow
def test_vllm_builds_its_engines_and_imports_its_workers_without_compiled_files(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert "vllm._C_stable_libtorch" in found["missing"] and found["compiled"] == []
    assert {"rms_norm", "silu_and_mul", "rotary_embedding"} <= set(found["operators"])
    assert found["platform"][0].endswith("CudaPlatform") and found["platform"][1]
    schedulers = ["HeliumAsyncScheduler", "AsyncScheduler", "HeliumAsyncScheduler"]
    assert found["engines"] == [
        [True, True, schedulers[0], "FULL_DECODE_ONLY", "TRITON_ATTN"],
        [True, True, schedulers[1], "NONE", "TRITON_ATTN"],
        [False, True, schedulers[2], "NONE", "TRITON_ATTN"],
    ]
