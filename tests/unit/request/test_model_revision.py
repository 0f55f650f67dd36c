"""What names a served model: files, weights changed in place, adapters, and who may change them."""

import asyncio
from types import SimpleNamespace

import pytest

from vllm_helium.integration.weights_revision import changes_weights, note_weights
from vllm_helium.model_revision import EngineRevisions


class Served:
    def __init__(self):
        self.now = ""
        self.adapters = {}

    async def weights(self):
        return self.now

    def adapter(self, model):
        return self.adapters.get(model)


@pytest.fixture
def served():
    return Served()


@pytest.fixture
def revisions(served, tmp_path):
    (tmp_path / "model").mkdir()
    model = SimpleNamespace(
        **dict.fromkeys(
            [
                *("revision", "dtype", "quantization", "hf_overrides", "tokenizer_revision"),
                *("max_model_len", "generation_config", "override_generation_config"),
            ]
        ),
        model=str(tmp_path / "model"),
        tokenizer=str(tmp_path / "model"),
    )
    config = SimpleNamespace(model_config=model, cache_config=SimpleNamespace(cache_dtype="auto"))
    return EngineRevisions(config, SimpleNamespace(chat_template="t"), served)


def now(revisions, model=None):
    return asyncio.run(revisions())(model)


def test_weights_changed_in_place_are_another_revision(revisions, served):
    first = now(revisions)
    assert now(revisions) == first
    served.now = "abc"
    assert now(revisions) != first
    served.now = " "  # two engines, neither of them changed
    assert now(revisions) == first


def test_an_adapter_is_known_by_its_files_and_by_when_it_was_loaded(revisions, served, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(b"one")

    def load(number, name="a"):
        served.adapters[name] = SimpleNamespace(
            lora_name=name, lora_path=str(folder), lora_int_id=number
        )
        return now(revisions, name)

    first = load(1)
    assert first != now(revisions) and first == load(1) == load(2)
    weights.write_bytes(b"another")
    assert now(revisions, "a") == first, "the engine still has what it loaded"
    assert load(3) != first
    assert load(4, "b") != load(3)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("reload_weights", True),
        ("update_weights", True),
        (lambda worker: None, True),
        (b"pickled", True),
        ("compute_weight_checksums", False),
    ],
)
def test_any_call_to_the_workers_may_change_weights_but_those_known_not_to(method, expected):
    assert changes_weights(method) is expected


def test_schedulers_of_ours_are_told_and_upstreams_are_left_alone():
    told = []
    ours = SimpleNamespace(weights_may_change=lambda: told.append(1))
    note_weights(ours, False)
    assert told == []
    note_weights(ours, True)
    note_weights(SimpleNamespace(), True)
    assert told == [1]
