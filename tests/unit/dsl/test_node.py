import re

import pytest

from helium import ops
from helium.errors import WorkflowError


@pytest.mark.parametrize(
    ("misuse", "hint"),
    [
        (lambda node: f"{node}", "not an f-string"),
        (str, "use ops.fmt"),
        (bool, "registered function"),
        (list, r"node\[start:stop\]"),
        (lambda node: node[0], "node.choice"),
    ],
)
def test_a_symbolic_value_refuses_to_be_used_now(misuse, hint):
    with pytest.raises(WorkflowError, match=hint):
        misuse(ops.placeholder("q"))


def test_the_error_names_both_lines_of_the_user():
    node = ops.placeholder("q", name="question")
    with pytest.raises(WorkflowError) as error:
        str(node)
    places = re.findall(r"test_node\.py:\d+", str(error.value))
    assert len(places) == 2
    assert places[0] != places[1]


def test_a_node_does_not_change():
    with pytest.raises(AttributeError):
        ops.placeholder("q").name = "other"


def test_names_must_be_text():
    with pytest.raises(WorkflowError, match="name '' is not a non-empty string"):
        ops.placeholder("q", name="")


def test_scopes_nest_and_end():
    with ops.scope("a"), ops.scope("b"):
        inner = ops.data("x", name="n")
    assert inner.name == "a/b/n"
    assert ops.data("x", name="n").name == "n"


def test_a_scope_ends_when_its_body_fails():
    with pytest.raises(KeyError), ops.scope("a"):
        raise KeyError
    assert ops.data("x", name="n").name == "n"
