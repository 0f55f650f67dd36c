"""Answers depend on the call and on nothing else."""

from __future__ import annotations

import pytest

from helium.errors import ConfigError
from helium.plan.calls import Call
from helium.plan.operators import Sampling
from vllm_helium.simulator.fake_model import FakeModel, OutputLengths
from vllm_helium.simulator.tokenizer import PieceTokenizer


def _call(text: str = "Why?", **sampling) -> Call:
    return Call((("user", text),), None, Sampling(**sampling), None)


def _model(mean: float | None = None, seed: int = 0, spread: float = 0.25) -> FakeModel:
    return FakeModel(PieceTokenizer(), OutputLengths(lambda call: mean, spread), seed)


def test_equal_calls_have_equal_answers_in_every_model():
    assert _model(40).answer(_call()) == _model(40).answer(_call())
    model = _model(40)
    assert model.answer(_call()) == model.answer(_call())


@pytest.mark.parametrize("other", [_call("Who?"), _call(temperature=0.5, seed=1)])
def test_other_calls_have_other_answers(other):
    assert _model(40).answer(_call()) != _model(40).answer(other)


def test_the_seed_makes_another_model():
    assert _model(40).answer(_call()) != _model(40, seed=1).answer(_call())


def test_text_and_tokens_agree_and_an_answer_ends_its_turn():
    tokenizer = PieceTokenizer()
    (output,) = _model(40).answer(_call())
    assert output.token_ids == [*tokenizer.token_ids(output.text), tokenizer.end_of_turn]


def test_an_answer_at_the_limit_is_cut():
    (output,) = _model(mean=None).answer(_call(max_tokens=17))
    assert len(output.token_ids) == 17
    assert PieceTokenizer().end_of_turn not in output.token_ids


def test_a_lower_limit_gives_the_start_of_the_same_answer():
    (long,) = _model(200).answer(_call(max_tokens=300))
    (short,) = _model(200).answer(_call(max_tokens=20))
    assert long.token_ids[:20] == short.token_ids


def test_lengths_spread_evenly_around_the_mean():
    model = _model(mean=100, spread=0.2)
    lengths = [len(model.answer(_call(f"question {n}"))[0].token_ids) for n in range(400)]
    assert 80 <= min(lengths) < 85 and 115 < max(lengths) <= 120
    assert abs(sum(lengths) / len(lengths) - 100) < 2


def test_calls_that_are_drawn_are_drawn_anew_each_time():
    model = _model(40)
    first, second = model.answer(_call(temperature=1.0)), model.answer(_call(temperature=1.0))
    assert first != second
    again = _model(40)
    assert (first, second) == (
        again.answer(_call(temperature=1.0)),
        again.answer(_call(temperature=1.0)),
    )


def test_several_outputs_differ():
    outputs = _model(40).answer(_call(temperature=1.0, seed=3, n=3))
    assert len({output.text for output in outputs}) == 3


def test_a_spread_that_allows_no_answer_is_refused():
    with pytest.raises(ConfigError, match="spread"):
        OutputLengths(spread=1.0)
