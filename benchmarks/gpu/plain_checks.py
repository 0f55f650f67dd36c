"""What the plain operators must compute, in plain torch, and a check of each on a device."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.gpu import plain_kernels, plain_ops

EPSILON = 1e-6


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Root-mean-square norm over the last axis."""
    values = x.float()
    values = values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + EPSILON)
    return values.to(x.dtype) * weight


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """Silu of the first half of the last axis, times the second."""
    half = x.shape[-1] // 2
    return torch.nn.functional.silu(x[..., :half].float()).to(x.dtype) * x[..., half:]


def rotate(
    positions: torch.Tensor, heads: torch.Tensor, cos_sin: torch.Tensor, is_neox: bool
) -> torch.Tensor:
    """Rotary embedding of [tokens, heads, size]."""
    half = cos_sin.shape[-1] // 2
    cos, sin = cos_sin[positions].float().unsqueeze(1).split(half, dim=-1)
    rotated, rest = heads.float().split([2 * half, heads.shape[-1] - 2 * half], dim=-1)
    if is_neox:
        x, y = rotated.split(half, dim=-1)
        rotated = torch.cat((x * cos - y * sin, y * cos + x * sin), dim=-1)
    else:
        x, y = rotated[..., ::2], rotated[..., 1::2]
        rotated = torch.stack((x * cos - y * sin, y * cos + x * sin), dim=-1).flatten(-2)
    return torch.cat((rotated, rest), dim=-1).to(heads.dtype)


def check(device: str, dtype: torch.dtype = torch.bfloat16) -> dict[str, str]:
    """Compares every operator with plain torch; returns operator -> what is wrong with it."""
    checks: dict[str, Callable[[str, torch.dtype], None]] = {
        "rms_norm": _check_rms_norm,
        "fused_add_rms_norm": _check_fused_add,
        "silu_and_mul": _check_silu,
        "rotary_embedding": _check_rotary,
    }
    if device == "cuda":
        checks["get_cuda_view_from_cpu_tensor"] = _check_host_view
        checks["weak_ref_tensor"] = _check_weak_reference
    wrong = {}
    for name, run in checks.items():
        try:
            run(device, dtype)
        except Exception as error:
            wrong[name] = f"{type(error).__name__}: {error}"[:500]
    return wrong


def _close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)


def _check_rms_norm(device: str, dtype: torch.dtype) -> None:
    # Heads of a fused projection: a strided view.
    x = torch.randn(5, 3, 96, device=device).to(dtype)[..., :80]
    weight = torch.randn(80, device=device).to(dtype)
    result = torch.full((5, 3, 80), torch.nan, device=device, dtype=dtype)
    plain_kernels.rms_norm(result, x, weight, EPSILON)
    _close(result, rms_norm(x, weight))
    plain_kernels.rms_norm(result, x, None, EPSILON)
    _close(result, rms_norm(x, torch.ones_like(weight)))


def _check_fused_add(device: str, dtype: torch.dtype) -> None:
    x, residual = (torch.randn(7, 96, device=device).to(dtype) for _ in range(2))
    weight = torch.randn(96, device=device).to(dtype)
    total = (x.float() + residual.float()).to(dtype)
    expected = rms_norm(total, weight)
    plain_kernels.fused_add_rms_norm(x, residual, weight, EPSILON)
    _close(residual, total)
    _close(x, expected)


def _check_silu(device: str, dtype: torch.dtype) -> None:
    x = torch.randn(5, 2 * 1100, device=device).to(dtype)
    result = torch.full((5, 1100), torch.nan, device=device, dtype=dtype)
    plain_kernels.silu_and_mul(result, x)
    _close(result, silu_and_mul(x))


def _check_rotary(device: str, dtype: torch.dtype) -> None:
    positions = torch.tensor([4, 0, 9], device=device)
    cos_sin = torch.randn(10, 48, device=device).to(dtype)
    for is_neox in (True, False):
        fused = torch.randn(3, 6 * 64, device=device).to(dtype)
        query, key = fused[:, : 4 * 64], fused[:, 4 * 64 :]  # strided, as split from a projection
        expected = [
            rotate(positions, part.reshape(3, -1, 64), cos_sin, is_neox) for part in (query, key)
        ]
        plain_kernels.rotary_embedding(positions, query, key, 64, cos_sin, is_neox)
        for part, wanted in zip((query, key), expected, strict=True):
            _close(part.reshape(3, -1, 64), wanted)


def _check_host_view(device: str, dtype: torch.dtype) -> None:
    host = torch.zeros(4, 6, dtype=torch.int32, pin_memory=True)
    view = plain_ops.get_cuda_view_from_cpu_tensor(host)
    assert view.is_cuda and view.shape == host.shape, f"{view.device} {tuple(view.shape)}"
    host[2, 3] = 7
    torch.cuda.synchronize()
    assert view[2, 3].item() == 7, "a write on the host does not show on the device"
    view[1, 1] = 9
    torch.cuda.synchronize()
    assert host[1, 1].item() == 9, "a write on the device does not show on the host"


def _check_weak_reference(device: str, dtype: torch.dtype) -> None:
    tensor = torch.randn(4, 6, device=device).to(dtype)[:, ::2]
    alias = plain_ops.weak_ref_tensor(tensor)
    assert alias.data_ptr() == tensor.data_ptr(), "the alias has memory of its own"
    assert alias.dtype == tensor.dtype and torch.equal(alias, tensor), "the alias differs"
