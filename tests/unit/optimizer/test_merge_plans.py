import pytest

from helium import graphs, ops
from helium.errors import WorkflowError
from helium.optimizer.driver import optimize
from helium.optimizer.merge_plans import Submission, merge_plans


def compiled(column, values, n_calls=2):
    question = ops.placeholder(column)
    draft = ops.llm([ops.Msg("user", question)], name="draft")
    nodes = [draft, ops.llm([ops.Msg("user", ["Polish: ", draft])], name="final")]
    return graphs.build({"answer": nodes[n_calls - 1]}).compile(**{column: values})


def test_equal_columns_are_shared_whatever_they_are_called():
    submissions = [
        Submission("s1", "acme", compiled("q", ["a", "b"])),
        Submission("s2", "acme", compiled("question", ["a", "b"], n_calls=1)),
    ]
    (merged,) = merge_plans(submissions)
    optimized = optimize(merged.compiled).compiled
    assert [op.name for op in optimized.plan.llm_operators] == ["s1/draft", "s1/final"]
    assert merged.split({"s1/answer": 1, "s2/answer": 2}) == {
        "s1": {"answer": 1},
        "s2": {"answer": 2},
    }
    assert merged.names["s2"]["draft"] == "s2/draft"


def test_different_columns_of_one_name_stay_apart():
    submissions = [
        Submission("s1", "acme", compiled("q", ["a"])),
        Submission("s2", "acme", compiled("q", ["b"])),
    ]
    (merged,) = merge_plans(submissions)
    assert merged.compiled.columns == {"s1/q": ("a",), "s2/q": ("b",)}
    assert len(optimize(merged.compiled).compiled.plan.llm_operators) == 4


def test_tenants_are_never_put_together():
    submissions = [
        Submission("s1", "acme", compiled("q", ["a"])),
        Submission("s2", "other", compiled("q", ["a"])),
        Submission("s3", "acme", compiled("q", ["a"])),
    ]
    merged = merge_plans(submissions)
    assert [(m.tenant, list(m.names)) for m in merged] == [
        ("acme", ["s1", "s3"]),
        ("other", ["s2"]),
    ]


@pytest.mark.parametrize("ids", [["s", "s"], [""], ["a/b"]], ids=str)
def test_ids_that_cannot_be_told_apart_are_refused(ids):
    submissions = [Submission(id, "acme", compiled("q", ["a"])) for id in ids]
    with pytest.raises(WorkflowError, match="submission id"):
        merge_plans(submissions)
