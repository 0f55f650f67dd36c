"""The operators that stand in for vLLM's compiled ones, under Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

ROOT = Path(__file__).resolve().parents[2]

INTERPRETED = """
import torch
from benchmarks.gpu import plain_checks, plain_kernels
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    wrong = plain_checks.check("cpu", dtype)
    assert not wrong, (dtype, wrong)

# The checks see a wrong operator: a large epsilon, and neighbours rotated as halves.
for name, last in (("rms_norm", 1.0), ("rotary_embedding", True)):
    right = getattr(plain_kernels, name)
    setattr(plain_kernels, name, lambda *a, right=right, last=last: right(*a[:-1], last))
    assert sorted(plain_checks.check("cpu", torch.float32)) == [name]
    setattr(plain_kernels, name, right)
print("all equal")
"""

REGISTERED = """
import sys, torch
from benchmarks.gpu import plain_ops
assert "vllm" not in sys.modules
assert sorted(plain_ops.register("CPU")) == sorted(plain_ops.SCHEMAS)
assert plain_ops.register("CPU") == [], "registered twice"
x, weight = torch.randn(3, 8), torch.randn(8)
out = torch.empty_like(x)
torch.ops._C.rms_norm(out, x, weight, 1e-6)
torch.testing.assert_close(out, torch.nn.functional.rms_norm(x, (8,), weight, 1e-6))
half = torch.empty(3, 4)
torch.ops._C.silu_and_mul(half, x)
torch.testing.assert_close(half, torch.nn.functional.silu(x[:, :4]) * x[:, 4:])
query, cache = torch.randn(3, 16), torch.randn(9, 8)
before = query.clone()
torch.ops._C.rotary_embedding(torch.tensor([1, 2, 3]), query, None, 8, cache, True)
assert not torch.equal(query, before)
assert torch.ops._C.cutlass_scaled_mm_supports_fp8(90) is False

folder = plain_ops.Path(sys.argv[1]) / "vllm"
(folder / "vllm_flash_attn").mkdir(parents=True)
(folder / "__init__.py").write_text("")
(folder / "_C_stable_libtorch.py").write_text("raise ImportError('not this one')")
sys.path.insert(0, sys.argv[1])
assert plain_ops.missing_modules() == list(plain_ops.COMPILED_MODULES)
plain_ops.install()
import vllm._C_stable_libtorch
(folder / "vllm_flash_attn" / "_vllm_fa2_C.abi3.so").write_text("")
assert plain_ops.missing_modules() == list(plain_ops.COMPILED_MODULES[:2])
print("registered")
"""


def run(code, *arguments):
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


def test_every_operator_equals_plain_torch_in_every_type():
    assert run(INTERPRETED) == "all equal"


def test_operators_are_found_under_the_names_that_vllm_calls(tmp_path):
    assert run(REGISTERED, str(tmp_path)) == "registered"
