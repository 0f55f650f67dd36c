from __future__ import annotations

import pytest

from helium.cost import Estimates, Profile, operator_signatures
from helium.cost.estimates import DEFAULT_OUTPUT_TOKENS
from helium.errors import PlanError
from helium.plan.functions import REGISTRY
from helium.plan.operators import Data, Format, Input, Lambda, Operator, Reference, Slice
from helium.plan.text import text
from helium.templates import WordTokenizer
from tests.unit.templates.plans import chat, compile_plan

Q = Reference("q")


def _signatures(*operators: Operator) -> dict[str, str]:
    columns = {operator.column for operator in operators if isinstance(operator, Input)}
    return operator_signatures(compile_plan(operators, **{key: ["x"] for key in columns}).plan)


def test_signatures_survive_renaming_and_edits_elsewhere() -> None:
    before = _signatures(Input("q", column="q"), chat("a", "Answer ", Q), chat("b", "Check ", Q))
    after = _signatures(
        Input("other", column="other"),
        Format("prompt", text=text("Answer ", Reference("other"))),
        chat("new", "Something else"),
        chat("renamed", Reference("prompt")),
    )
    assert after["renamed"] == before["a"]
    assert after["renamed"] != before["b"]


@pytest.mark.parametrize(
    "other",
    [
        chat("a", "Answer! ", Q),
        chat("a", "Answer ", Q, max_tokens=7),
        chat("a", "Answer ", Q, model="adapter"),
        chat("a", "Answer ", Q, system="Be brief."),
    ],
)
def test_signatures_tell_what_shapes_the_output(other: Operator) -> None:
    q = Input("q", column="q")
    assert _signatures(q, chat("a", "Answer ", Q))["a"] != _signatures(q, other)["a"]


def test_steps_of_a_chain_have_their_own_statistics() -> None:
    chain = [Input("q", column="q"), chat("a", "Refine ", Q)]
    chain += [chat("b", "Refine ", Reference("a")), chat("c", "Refine ", Reference("b"))]
    signatures = _signatures(*chain)
    assert len({signatures[name] for name in "abc"}) == 3
    profile = Profile()
    profile.observe_output(signatures["a"], 11)
    profile.observe_output(signatures["b"], 15)
    estimates = Estimates(compile_plan(chain, q=["x"]), WordTokenizer(), profile)
    # The third step was never seen: the first with the same text stands in.
    assert [estimates.value_tokens(name) for name in "abc"] == [11, 15, 11]


def test_profiles_round_trip_to_equal_bytes() -> None:
    profile = Profile()
    for name in ("b#0", "a#0"):
        for length in (1, 500, 20):
            profile.observe_output(name, length)
    profile.observe_column("q", 9)
    raw = profile.to_json()
    assert Profile.from_json(raw).to_json() == raw
    assert Profile.from_json(raw) == profile


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"{", "profile"),
        (b'{"version": 99}', "`version` is 99"),
        (b'{"outputs": {"a": {"count": -1}}}', "count"),
        (b'{"surprise": 1}', "surprise"),
    ],
)
def test_bad_profiles_are_refused(raw: bytes, problem: str) -> None:
    with pytest.raises(PlanError, match=problem):
        Profile.from_json(raw)


def _echo(value: str) -> str:
    return value


def test_estimates_without_a_profile() -> None:
    REGISTRY.register(_echo, "tests.echo")
    compiled = compile_plan(
        [
            Input("q", column="q"),
            Data("tone", values=("in two words",), is_scalar=True),
            Format("both", text=text("Say ", Q, " ", Reference("tone"))),
            Lambda("f", function="tests.echo", arguments=("both",)),
            Slice("some", source="q", start=1),
            chat("a", Q, max_tokens=None),
            chat("b", Q, max_tokens=40),
        ],
        q=["one two three", "one"],
    )
    estimates = Estimates(compiled, WordTokenizer())
    assert estimates.value_tokens("q") == 2
    assert estimates.value_tokens("some") == 2
    assert estimates.value_tokens("f") == estimates.value_tokens("both") == 2 + 2 + 1 + 3
    assert estimates.value_tokens("a") == DEFAULT_OUTPUT_TOKENS
    assert estimates.value_tokens("b") == 40


def test_long_columns_are_sampled_but_their_mean_is_right() -> None:
    class Counting(WordTokenizer):
        num_chars = 0

        def encode(self, text: str):  # type: ignore[no-untyped-def]
            self.num_chars += len(text)
            return super().encode(text)

    tokenizer = Counting()
    values = ["word " * (10 + row % 3) for row in range(3_000)]
    compiled = compile_plan([Input("q", column="q"), chat("a", Q)], q=values)
    assert abs(Estimates(compiled, tokenizer).value_tokens("q") - 12) < 1
    assert tokenizer.num_chars < 1_000
