from __future__ import annotations

import pytest

from helium.cost import DEVICES, MODELS, CostModel, RooflineModel, TokenStepModel
from helium.errors import ConfigError


def test_token_steps_are_the_papers_formula() -> None:
    model = TokenStepModel(kv_capacity_tokens=1_000)
    # (len_out * u_p + len_out * (len_out + 1) / 2) / M
    assert model.usage(300, 700, 10) == pytest.approx((10 * 300 + 55) / 1_000)
    assert model.delay(1_000, 10) == 10


def test_published_shapes_have_their_known_kv_sizes() -> None:
    assert MODELS["Qwen3-8B"].kv_bytes_per_token == 144 * 1024
    assert MODELS["Qwen3-14B"].kv_bytes_per_token == 160 * 1024
    assert MODELS["Qwen3-32B"].kv_bytes_per_token == 256 * 1024
    assert MODELS["Llama-3.1-8B"].kv_bytes_per_token == 128 * 1024


def test_kv_capacity_is_near_the_measured_one() -> None:
    # vLLM reports 478,560 tokens on a 94 GB card; activations and graphs take some of it.
    capacity = RooflineModel.preset("H100-NVL", "Qwen3-8B").kv_capacity_tokens
    assert 400_000 < capacity < 530_000


@pytest.mark.parametrize("device", DEVICES)
def test_small_decode_steps_are_bound_by_memory_and_large_prefills_by_arithmetic(
    device: str,
) -> None:
    model = RooflineModel.preset(device, "SmolLM2-135M" if device == "cpu" else "Qwen3-8B")
    overhead = DEVICES[device].step_overhead_ms
    one = model.step_ms(0, 0, 1, 100) - overhead
    two = model.step_ms(0, 0, 2, 200) - overhead
    assert two < 1.05 * one
    some = model.step_ms(8_192, 4_096, 0, 0) - overhead
    double = model.step_ms(16_384, 4_096, 0, 0) - overhead
    assert double == pytest.approx(2 * some, rel=1e-6)


@pytest.mark.parametrize("model", [TokenStepModel(), RooflineModel.preset("H200", "Qwen3-8B")])
def test_cached_tokens_are_cheaper_than_computed_ones_and_output_costs(model: CostModel) -> None:
    computed = model.usage(1_000, 0, 100)
    cached = model.usage(200, 800, 100)
    assert cached < computed < model.usage(1_000, 0, 200)
    assert 0 < model.delay(1_000, 100) < model.delay(1_000, 101)


def test_a_model_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Qwen3-32B does not fit cpu.*65.5 GB"):
        RooflineModel.preset("cpu", "Qwen3-32B")
    with pytest.raises(ConfigError, match="unknown device 'H300'"):
        RooflineModel.preset("H300", "Qwen3-8B")
    with pytest.raises(ConfigError, match="kv_capacity_tokens"):
        TokenStepModel(0)
