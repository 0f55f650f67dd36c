from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helium.plan.functions import REGISTRY
from helium.plan.operators import Data, Format, Input, Lambda, Llm, Operator, Reference
from helium.plan.text import text
from helium.templates import (
    Template,
    TemplateRenderer,
    TransformersTokenizer,
    VariableRun,
    WordTokenizer,
    segment_lengths,
)
from helium.templates.rendering import token_ids
from tests.unit.templates.plans import chat, compile_plan

Q = Reference("q")


def _shape(template: Template) -> list[object]:
    return [
        (run.value.label if run.value else "join")
        if isinstance(run, VariableRun)
        else len(token_ids(run))
        for run in template
    ]


def _templates(*operators: Operator) -> list[Template]:
    columns = {operator.column for operator in operators if isinstance(operator, Input)}
    compiled = compile_plan(operators, **{key: ["one", "two"] for key in columns})
    renderer = TemplateRenderer(compiled, WordTokenizer())
    return [renderer.template(operator) for operator in compiled.plan.llm_operators]


def test_a_static_run_keeps_clear_of_the_value_beside_it() -> None:
    (template,) = _templates(Input("q", column="question"), chat("a", "Answer now: ", Q, " thanks"))
    # <|im_start|> user Answer | now: {q} | thanks | <|im_end|> \n <|im_start|> assistant \n
    assert _shape(template) == [3, "column:question", "join", 5]
    value = template[1]
    assert isinstance(value, VariableRun)
    assert value.num_join_tokens == 2  # " now:" and the space after it
    assert value.label.startswith(" now: \0")


def test_equal_values_after_different_words_are_not_the_same_run() -> None:
    one, two = _templates(
        Input("q", column="question"), chat("a", "See this: ", Q), chat("b", "See that: ", Q)
    )
    assert one[0] == two[0]
    assert one[1] != two[1]


def test_columns_are_one_value_however_many_operators_read_them() -> None:
    one, two = _templates(
        Input("q", column="question"),
        Input("again", column="question"),
        chat("a", "See this: ", Q),
        chat("b", "See this: ", Reference("again")),
    )
    assert [run for run in one if isinstance(run, bytes)] == [
        run for run in two if isinstance(run, bytes)
    ]
    assert _shape(one) == _shape(two)


def _strip(answer: str) -> str:
    return answer.strip()


def test_formats_and_scalars_become_static_text() -> None:
    (template, plain) = _templates(
        Data("tone", values=("politely",), is_scalar=True),
        Format("prompt", text=text("Answer ", Reference("tone"), " and well")),
        chat("a", Reference("prompt")),
        chat("b", "Answer politely and well"),
    )
    assert template == plain
    assert len(template) == 1


def test_functions_and_outputs_are_values() -> None:
    REGISTRY.register(_strip, "tests.strip")
    (_, template) = _templates(
        Input("q", column="question"),
        chat("a", Q),
        Lambda("parse", function="tests.strip", arguments=("a",)),
        chat("b", "A parsed answer: ", Reference("parse"), " or raw: ", Reference("a")),
    )
    assert [part for part in _shape(template) if isinstance(part, str)] == [
        "value:parse",
        "output:a",
    ]


def test_a_continued_conversation_starts_with_the_whole_prompt_and_the_reply() -> None:
    first, second = _templates(
        Input("q", column="question"),
        chat("a", "Answer this: ", Q, system="Be brief."),
        chat("b", "Now reconsider it.", history="a"),
    )
    assert second[: len(first)] == first
    reply = second[len(first)]
    assert isinstance(reply, VariableRun)
    assert reply.value is not None and reply.value.label == "output:a"
    assert all(isinstance(run, bytes) for run in second[len(first) + 1 :])


def test_nothing_is_shared_across_models() -> None:
    one, two = _templates(chat("a", "Hello there"), chat("b", "Hello there", model="adapter"))
    assert one[0] != two[0]
    assert two[1:] == one


def test_a_value_that_looks_like_the_mark_does_no_harm() -> None:
    (template,) = _templates(
        Input("q", column="question"), chat("a", "\ue0000\ue000 odd text: ", Q)
    )
    assert [part for part in _shape(template) if isinstance(part, str)] == ["column:question"]


_values = st.text(
    st.sampled_from("abe 1 2\n.,'-é中\U0001f600\u0301<|>:s"), max_size=12
) | st.sampled_from(["summarize", "4567", " ", "\n\n", "?", "'s", " the"])


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(values=st.lists(_values, min_size=2, max_size=2), order=st.permutations(range(6)))
def test_claimed_tokens_are_in_every_real_prompt(
    bpe: TransformersTokenizer, values: list[str], order: list[int]
) -> None:
    """The real prompt, tokenized whole, is the static runs with something in between."""
    texts = [
        "Question: ",
        Reference("q"),
        "\n\nPlease answer the question in 3 words, summarize ",
        Reference("c"),
        "123 more words. Answer the question?",
        "7",
    ]
    parts = [texts[index] for index in order]
    operators = (Input("q", column="q"), Input("c", column="c"), chat("a", *parts))
    compiled = compile_plan(operators, q=["x", "y"], c=["x", "y"])
    (operator,) = compiled.plan.llm_operators
    template = TemplateRenderer(compiled, bpe).template(operator)
    filled = "".join(
        part if isinstance(part, str) else values[part.operator == "c"] for part in parts
    )
    prompt = bpe.encode(bpe.render_chat([{"role": "user", "content": filled}], True)).token_ids
    lengths = segment_lengths(template, prompt)
    assert lengths, filled
    assert sum(lengths) == len(prompt)
    position = 0
    for run, length in zip(template, lengths, strict=True):
        if isinstance(run, bytes):
            assert list(prompt[position : position + length]) == list(token_ids(run))
        position += length


def test_long_templates_are_cut_to_what_an_engine_takes() -> None:
    parts: list[str | Reference] = []
    for index in range(700):
        parts += [f" some words here {index} and ", Q]
    (template,) = _templates(Input("q", column="question"), chat("a", *parts))
    assert len(template) <= 1_000


def test_completion_prompts_have_templates_too() -> None:
    (template,) = _templates(
        Input("q", column="question"), Llm("a", prompt=text("Complete this text: ", Q))
    )
    assert _shape(template) == [2, "column:question"]


@pytest.mark.parametrize("length", [0, 1, 5])
def test_segment_lengths_give_values_what_is_between_static_runs(length: int) -> None:
    (template,) = _templates(Input("q", column="question"), chat("a", "Answer now: ", Q, " thanks"))
    static = [token_ids(run) for run in template if isinstance(run, bytes)]
    prompt = [*static[0], *range(length), *static[1]]
    lengths = segment_lengths(template, prompt)
    assert lengths[0] == len(static[0]) and lengths[-1] == len(static[1])
    assert sum(lengths) == len(prompt)


def test_segment_lengths_of_a_foreign_prompt_are_empty() -> None:
    (template,) = _templates(Input("q", column="question"), chat("a", "Answer now: ", Q, " thanks"))
    assert segment_lengths(template, [1, 2, 3]) == ()
    assert segment_lengths(template, []) == ()
