"""Calibration: a device's efficiency factors fitted to steps that were measured on it.

A step is described as in `RooflineModel.step_ms`. Steps that only decode are bound by memory
traffic, which gives the bandwidth ratio and the overhead of a step; steps with much prefill are
bound by arithmetic, which gives the FLOP/s ratio.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from helium.cost.roofline import DEVICES, Device, RooflineModel
from helium.errors import ConfigError
from helium.json_text import decode_json

MIN_STEPS = 8
"""Steps of a kind below which nothing is fitted to them."""

MIN_SPREAD_RATIO = 1.2
"""Heaviest over lightest traffic of the decode steps below which overhead and bandwidth cannot be
told apart; the overhead then stays the device's own."""


class MeasuredStep(NamedTuple):
    """One step of an engine: the arguments of ``RooflineModel.step_ms``, and what it took."""

    prefill_tokens: int
    prefill_context_tokens: float
    decode_sequences: int
    decode_context_tokens: int
    ms: float


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Efficiency factors of a device running a model.

    Attributes:
        device: Name in ``DEVICES``.
        model: Name in ``MODELS`` of what was measured.
        num_decode_steps: Steps the bandwidth ratio and the overhead were fitted to.
        num_prefill_steps: Steps the FLOP/s ratio was fitted to; the preset's is kept where it is 0.
        error_p50_ratio: Median of ``|predicted - measured| / measured`` over all steps.
        error_p90_ratio: Its 90 % quantile.
        environment: What it was measured with, for people.
    """

    device: str
    model: str
    flops_ratio: float
    bandwidth_ratio: float
    step_overhead_ms: float
    num_decode_steps: int
    num_prefill_steps: int
    error_p50_ratio: float
    error_p90_ratio: float
    environment: dict[str, Any] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ValueError(f"unknown device {self.device!r}; known: {list(DEVICES)}")
        for name in ("flops_ratio", "bandwidth_ratio"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not self.step_overhead_ms >= 0:
            raise ValueError(f"step_overhead_ms must be 0 or more, got {self.step_overhead_ms}")

    def apply(self, model: RooflineModel) -> RooflineModel:
        """Returns a cost model with these factors.

        Raises:
            ConfigError: The model is of another device.
        """
        if model.device.name != self.device:
            raise ConfigError(
                f"calibration is for {self.device}, the cost model for {model.device.name}; "
                "measure that device, or leave the calibration out"
            )
        return replace(
            model,
            device=replace(
                model.device,
                flops_ratio=self.flops_ratio,
                bandwidth_ratio=self.bandwidth_ratio,
                step_overhead_ms=self.step_overhead_ms,
            ),
        )

    def to_json(self) -> bytes:
        """Returns an indented encoding."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


def load_calibration(path: str | os.PathLike[str]) -> Calibration:
    """Reads a calibration: a file of its own, or a report that holds one as ``calibration``.

    Raises:
        ConfigError: The file cannot be read or is no calibration.
    """
    try:
        content = decode_json(Path(path).read_bytes())
        if isinstance(content, dict) and "calibration" in content:
            content = content["calibration"]
        return msgspec.convert(content, Calibration)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"calibration {os.fspath(path)!r}: {error}; expected the JSON that "
            "benchmarks/gpu/run_workflows.py writes"
        ) from None


def fit_calibration(
    steps: Sequence[MeasuredStep],
    device: str,
    model: str,
    environment: dict[str, Any] | None = None,
) -> Calibration:
    """Fits the factors of a known device and model to measured steps.

    Medians of slopes between far points and of residuals, so that the odd slow step does not
    count.

    Raises:
        ConfigError: Device or model is unknown, or too few steps only decode.
    """
    preset = RooflineModel.preset(device, model)
    traffic = _with(preset, flops=float("inf"), flops_ratio=1.0, bandwidth_ratio=1.0)
    arithmetic = _with(preset, bandwidth=float("inf"), flops_ratio=1.0, bandwidth_ratio=1.0)
    decode = [(_ms(traffic, step), step.ms) for step in steps if not step.prefill_tokens]
    if len(decode) < MIN_STEPS:
        raise ConfigError(
            f"calibration: {len(decode)} of {len(steps)} steps only decode, {MIN_STEPS} are "
            "needed; measure a longer run"
        )
    slope, overhead_ms = _line(decode, preset.device.step_overhead_ms)
    bandwidth_ratio = 1.0 / slope
    ratios = []
    for step in steps:
        compute_ms = _ms(arithmetic, step)
        # At peak rates the arithmetic takes longer than the traffic does as measured: it bounds.
        if step.prefill_tokens and compute_ms > _ms(traffic, step) * slope:
            ratios.append(compute_ms / max(step.ms - overhead_ms, 1e-3))
    has_prefill = len(ratios) >= MIN_STEPS
    fitted = _with(
        preset,
        flops_ratio=statistics.median(ratios) if has_prefill else preset.device.flops_ratio,
        bandwidth_ratio=bandwidth_ratio,
        step_overhead_ms=overhead_ms,
    )
    errors = sorted(abs(_ms(fitted, step) - step.ms) / step.ms for step in steps if step.ms > 0)
    return Calibration(
        device=device,
        model=model,
        flops_ratio=fitted.device.flops_ratio,
        bandwidth_ratio=bandwidth_ratio,
        step_overhead_ms=overhead_ms,
        num_decode_steps=len(decode),
        num_prefill_steps=len(ratios) if has_prefill else 0,
        error_p50_ratio=errors[len(errors) // 2],
        error_p90_ratio=errors[len(errors) * 9 // 10],
        environment=environment or {},
    )


def device_of_card(card: str, memory_bytes: float) -> str | None:
    """Returns the name in ``DEVICES`` of a card as its driver names it; ``None`` if unknown.

    >>> device_of_card("NVIDIA H100 80GB HBM3", 85e9), device_of_card("NVIDIA H200", 151e9)
    ('H100-80GB', 'H200')
    >>> device_of_card("NVIDIA H100 NVL", 100e9), device_of_card("NVIDIA L4", 24e9)
    ('H100-NVL', None)
    """
    words = card.upper().replace("-", " ").split()
    if "H200" in words:
        return "H200" if "NVL" not in words else None
    if "H100" in words:
        if "NVL" in words:
            return "H100-NVL"
        return "H100-80GB" if 70e9 < memory_bytes < 90e9 and "PCIE" not in words else None
    return None


def _with(model: RooflineModel, **changes: float) -> RooflineModel:
    values: dict[str, float] = {"step_overhead_ms": 0.0, **changes}
    device: Device = replace(model.device, **values)  # type: ignore[arg-type]
    return replace(model, device=device)


def _ms(model: RooflineModel, step: MeasuredStep) -> float:
    return model.step_ms(*step[:4])


def _line(points: Sequence[tuple[float, float]], preset_overhead_ms: float) -> tuple[float, float]:
    """Returns slope and offset of ``ms`` over traffic at peak rate, both positive."""
    points = sorted(points)
    lightest, heaviest = points[0][0], points[-1][0]
    if heaviest >= MIN_SPREAD_RATIO * lightest:
        half = len(points) // 2
        # Pairs half the range apart: near pairs say little of the slope.
        slopes = [
            (y2 - y1) / (x2 - x1)
            for (x1, y1), (x2, y2) in zip(points, points[half:], strict=False)
            if x2 > x1
        ]
        slope = statistics.median(slopes) if slopes else 0.0
        if slope > 0:
            overhead_ms = statistics.median(y - slope * x for x, y in points)
            if overhead_ms >= 0:
                return slope, overhead_ms
    rest = [(y - preset_overhead_ms) / x for x, y in points]
    slope = statistics.median(rest)
    if slope > 0:
        return slope, preset_overhead_ms
    return statistics.median(y / x for x, y in points), 0.0
