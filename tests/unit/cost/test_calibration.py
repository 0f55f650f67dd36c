"""Factors fitted to steps are those the steps were made with."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from helium.cost import (
    MeasuredStep,
    RooflineModel,
    device_of_card,
    fit_calibration,
    load_calibration,
)
from helium.errors import ConfigError

PRESET = RooflineModel.preset("H100-80GB", "Qwen3-8B")
TRUE = replace(
    PRESET,
    device=replace(PRESET.device, flops_ratio=0.41, bandwidth_ratio=0.62, step_overhead_ms=2.5),
)


def steps(num_decode=200, num_prefill=100, noise=0.0, model=TRUE):
    generator = random.Random(1)
    work = [(0, 0.0, n := generator.randint(1, 256), n * 3000) for _ in range(num_decode)]
    work += [(4096, 8000.0, 16, 16 * 3000) for _ in range(num_prefill)]
    return [
        MeasuredStep(*step, ms=model.step_ms(*step) * (1 + noise * generator.uniform(-1, 1)))
        for step in work
    ]


def test_exact_steps_give_the_exact_factors():
    found = fit_calibration(steps(), "H100-80GB", "Qwen3-8B")
    assert found.flops_ratio == pytest.approx(0.41)
    assert found.bandwidth_ratio == pytest.approx(0.62)
    assert found.step_overhead_ms == pytest.approx(2.5)
    assert found.error_p90_ratio == pytest.approx(0, abs=1e-9)
    assert (found.num_decode_steps, found.num_prefill_steps) == (200, 100)


def test_noise_and_slow_steps_hardly_move_the_factors():
    noisy = steps(noise=0.05)
    noisy[::25] = [step._replace(ms=step.ms * 20) for step in noisy[::25]]
    found = fit_calibration(noisy, "H100-80GB", "Qwen3-8B")
    assert found.flops_ratio == pytest.approx(0.41, rel=0.05)
    assert found.bandwidth_ratio == pytest.approx(0.62, rel=0.05)
    assert found.step_overhead_ms == pytest.approx(2.5, rel=0.2)
    assert 0 < found.error_p50_ratio < 0.06 < found.error_p90_ratio + 0.06


def test_without_prefill_steps_the_presets_ratio_is_kept():
    found = fit_calibration(steps(num_prefill=0), "H100-80GB", "Qwen3-8B")
    assert found.flops_ratio == PRESET.device.flops_ratio
    assert found.num_prefill_steps == 0


def test_equal_decode_steps_leave_the_overhead_to_the_preset():
    step = (0, 0.0, 64, 64 * 3000)
    equal = [MeasuredStep(*step, ms=TRUE.step_ms(*step)) for _ in range(20)]
    found = fit_calibration(equal, "H100-80GB", "Qwen3-8B")
    assert found.step_overhead_ms == PRESET.device.step_overhead_ms
    assert found.error_p90_ratio == pytest.approx(0, abs=1e-9)


def test_too_few_decode_steps_are_refused():
    with pytest.raises(ConfigError, match="7 of 107 steps only decode"):
        fit_calibration(steps(num_decode=7), "H100-80GB", "Qwen3-8B")


def test_a_calibration_survives_its_file_and_a_report_around_it(tmp_path):
    found = fit_calibration(steps(), "H100-80GB", "Qwen3-8B", {"card": "a card"})
    alone, report = tmp_path / "calibration.json", tmp_path / "report.json"
    alone.write_bytes(found.to_json())
    report.write_text(json.dumps({"calibration": json.loads(found.to_json()), "systems": []}))
    assert load_calibration(alone) == load_calibration(report) == found
    applied = found.apply(PRESET)
    assert applied.step_ms(0, 0, 64, 200_000) == pytest.approx(TRUE.step_ms(0, 0, 64, 200_000))
    assert applied.device.flops == PRESET.device.flops


def test_a_calibration_of_another_device_is_refused():
    found = fit_calibration(steps(), "H100-80GB", "Qwen3-8B")
    with pytest.raises(ConfigError, match="for H100-80GB, the cost model for H200"):
        found.apply(RooflineModel.preset("H200", "Qwen3-8B"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "a toaster"}, "unknown device 'a toaster'"),
        ({"bandwidth_ratio": 0.0}, "bandwidth_ratio must be above 0"),
        ({"surprise": 1}, "surprise"),
        (None, "expected the JSON"),
    ],
)
def test_a_bad_file_is_refused_with_what_is_wrong(tmp_path, change, message):
    found = json.loads(fit_calibration(steps(), "H100-80GB", "Qwen3-8B").to_json())
    path = tmp_path / "calibration.json"
    path.write_text("[1" if change is None else json.dumps(found | change))
    with pytest.raises(ConfigError, match=message):
        load_calibration(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load_calibration(tmp_path / "none.json")


def test_cards_are_known_by_their_drivers_names():
    assert device_of_card("NVIDIA H100 80GB HBM3", 85e9) == "H100-80GB"
    assert device_of_card("NVIDIA H100 PCIe", 85e9) is None
    assert device_of_card("NVIDIA H200", 151e9) == "H200"
    assert device_of_card("NVIDIA A100-SXM4-80GB", 85e9) is None
