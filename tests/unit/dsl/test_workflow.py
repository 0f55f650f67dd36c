import pytest

import helium
from helium import ops, workflow
from helium.errors import WorkflowError


@workflow
def review(question, context, rounds=1):
    """Answers and improves."""
    answer = ops.llm([ops.Msg("user", [context, question])], name="answer")
    for number in range(rounds):
        answer = ops.llm([ops.Msg("user", "Improve.")], history=answer, name=f"round_{number}")
    return {"final": answer}


def test_parameters_without_default_are_columns_and_others_options():
    assert review.build().plan.columns == ("context", "question")
    assert len(review.build(rounds=3).plan.llm_operators) == 4
    assert review.compile(question=["a", "b"], context="c").rows.num_rows("final") == 2
    assert (review.__name__, review.__doc__) == ("review", "Answers and improves.")


def test_an_unknown_option_names_those_there_are():
    with pytest.raises(WorkflowError, match=r"'review' has no options \['round'\].*\['rounds'\]"):
        review.build(round=3)


def test_a_workflow_inside_another_records_there():
    @workflow
    def twice(question):
        with ops.scope("first"):
            first = review(question, ops.data("x"))["final"]
        with ops.scope("second"):
            return review(first, ops.data("y"), rounds=0)["final"]

    plan = twice.build().plan
    assert [operator.name for operator in plan.llm_operators] == [
        "first/answer",
        "first/round_0",
        "second/answer",
    ]
    assert [output.key for output in plan.outputs] == ["twice"]


def test_a_workflow_names_each_column():
    with pytest.raises(WorkflowError, match=r"parameter \*columns; name each"):

        @workflow
        def anything(*columns):
            return columns[0]


def test_keyword_only_columns_are_columns():
    @workflow
    def only(*, question):
        return question

    assert only.build().plan.columns == ("question",)


def test_a_function_records_on_nodes_and_runs_on_strings():
    @helium.function(name="tests.first_word")
    def first_word(value):
        return value.split()[0]

    assert first_word("a b") == "a"
    node = first_word(ops.placeholder("q"))
    graph = helium.build({"out": node})
    assert graph.plan.by_name["first_word"].function == "tests.first_word"
    assert graph.compile(q=["x"]).rows.num_rows("out") == 1
