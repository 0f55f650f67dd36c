"""Triton versions of the few operators that a dense decoder needs of vLLM's compiled library.

Arithmetic is in float32, results in the element type of the inputs. Nothing here synchronizes or
reads device memory on the host, so calls can be captured in a CUDA graph.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _rms_norm_kernel(
    out, x, residual, weight, num_columns, epsilon, HAS_RESIDUAL: tl.constexpr, WIDTH: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    inside = columns < num_columns
    at = row * num_columns + columns
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        values += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(residual + at, values.to(residual.dtype.element_ty), mask=inside)
    variance = tl.sum(values * values, axis=0) / num_columns
    values = values * (1.0 / tl.sqrt(variance + epsilon))
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    result = values.to(out.dtype.element_ty).to(tl.float32) * scale
    tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _silu_and_mul_kernel(out, x, num_columns, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = columns < num_columns
    gate = tl.load(x + row * 2 * num_columns + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + row * 2 * num_columns + num_columns + columns, mask=inside, other=0.0)
    silu = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty)
    result = silu.to(tl.float32) * up.to(tl.float32)
    tl.store(out + row * num_columns + columns, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _rotary_kernel(
    positions,
    heads,
    cos_sin,
    token_stride,
    head_stride,
    half,
    IS_NEOX: tl.constexpr,
    WIDTH: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    start = heads + token * token_stride + tl.program_id(1) * head_stride
    lanes = tl.arange(0, WIDTH)
    inside = lanes < half
    row = cos_sin + tl.load(positions + token) * 2 * half
    cos = tl.load(row + lanes, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(row + half + lanes, mask=inside, other=0.0).to(tl.float32)
    if IS_NEOX:
        first = start + lanes
        second = start + half + lanes
    else:
        first = start + 2 * lanes
        second = first + 1
    x = tl.load(first, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(second, mask=inside, other=0.0).to(tl.float32)
    tl.store(first, (x * cos - y * sin).to(heads.dtype.element_ty), mask=inside)
    tl.store(second, (y * cos + x * sin).to(heads.dtype.element_ty), mask=inside)


def rms_norm(
    result: torch.Tensor, input: torch.Tensor, weight: torch.Tensor | None, epsilon: float
) -> None:
    """Writes ``input`` normalized over its last axis, times ``weight`` [columns], to ``result``."""
    _norm(result, input.contiguous(), None, weight, epsilon)


def fused_add_rms_norm(
    input: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, epsilon: float
) -> None:
    """Adds ``input`` to ``residual`` in place; ``input`` becomes the sum, normalized."""
    _norm(input, input, residual, weight, epsilon)


def silu_and_mul(result: torch.Tensor, input: torch.Tensor) -> None:
    """Writes silu of the first half of the last axis, times the second half, to ``result``."""
    num_columns = result.shape[-1]
    num_rows = result.numel() // max(1, num_columns)
    if num_rows:
        width = min(1024, triton.next_power_of_2(num_columns))
        grid = (num_rows, triton.cdiv(num_columns, width))
        _silu_and_mul_kernel[grid](result, input.contiguous(), num_columns, WIDTH=width)


def rotary_embedding(
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor | None,
    head_size: int,
    cos_sin_cache: torch.Tensor,
    is_neox: bool,
) -> None:
    """Rotates the first columns of every head of ``query`` and ``key`` in place.

    Args:
        positions: int64 [num_tokens].
        query: [num_tokens, num_heads * head_size] or [num_tokens, num_heads, head_size]; as
            ``key``, its last axes are contiguous.
        cos_sin_cache: [max_positions, rotary columns], cosines then sines.
    """
    half = cos_sin_cache.shape[-1] // 2
    for heads in (query, key):
        if heads is None or not heads.numel():
            continue
        heads = heads.view(positions.numel(), -1, head_size)
        _rotary_kernel[(heads.shape[0], heads.shape[1])](
            positions,
            heads,
            cos_sin_cache,
            heads.stride(0),
            heads.stride(1),
            half,
            IS_NEOX=is_neox,
            WIDTH=triton.next_power_of_2(half),
        )


def _norm(
    out: torch.Tensor,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    epsilon: float,
) -> None:
    for tensor, name in ((out, "result"), (residual, "residual")):
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"{name} is not contiguous: strides {tensor.stride()}")
    num_columns = x.shape[-1]
    num_rows = x.numel() // max(1, num_columns)
    if num_rows:
        scale = torch.ones_like(x[..., 0, :]).view(-1)[:num_columns] if weight is None else weight
        _rms_norm_kernel[(num_rows,)](
            out,
            x,
            x if residual is None else residual,
            scale,
            num_columns,
            epsilon,
            HAS_RESIDUAL=residual is not None,
            WIDTH=triton.next_power_of_2(num_columns),
        )
