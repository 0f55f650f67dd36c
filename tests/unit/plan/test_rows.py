import pytest

from helium.errors import WorkflowError
from helium.plan.compiled_plan import bind
from helium.plan.logical_plan import LogicalPlan
from helium.plan.operators import (
    Concat,
    Data,
    Format,
    Input,
    Llm,
    Message,
    Output,
    Reference,
    Slice,
)
from helium.plan.text import text


def rows_of(*operators, **batch):
    operators = (*operators, Output("out", source=operators[-1].name))
    return bind(LogicalPlan(operators), batch).rows


def both(*names):
    return Format("both", text=text(*(Reference(name) for name in names)))


X, Y = Input("x", column="x"), Input("y", column="y")
SCALAR = Data("s", values=("v",), is_scalar=True)


@pytest.mark.parametrize("size", [0, 1, 17, 1000])
def test_row_wise_operators_have_the_rows_of_their_operands(size):
    rows = rows_of(X, SCALAR, both("x", "s"), x=["v"] * size)
    assert rows.num_rows("both") == size
    assert not rows.is_scalar("both")
    assert all(rows.source_row("both", row, "s") == 0 for row in range(size))
    assert all(rows.source_row("both", row, "x") == row for row in range(size))


def test_scalars_alone_make_a_scalar():
    rows = rows_of(X, SCALAR, both("x", "s"), x="one")
    assert rows.is_scalar("both")
    assert rows.num_rows("out") == 1


def test_an_operator_that_reads_nothing_is_a_scalar():
    assert rows_of(Llm("a", prompt=text("x"))).is_scalar("a")


def test_a_batch_of_one_row_does_not_broadcast():
    with pytest.raises(WorkflowError, match=r"reads operator 'x' with 1 row.* 'y' with 2;"):
        rows_of(X, Y, both("x", "y"), x=["a"], y=["b", "c"])


def test_columns_that_never_meet_may_differ():
    plan = LogicalPlan((X, Y, Output("a", source="x"), Output("b", source="y")))
    rows = bind(plan, {"x": ["a"], "y": ["b", "c"]}).rows
    assert (rows.num_rows("a"), rows.num_rows("b")) == (1, 2)


@pytest.mark.parametrize(
    "bounds",
    [(None, None, None), (1, None, None), (-2, None, None), (None, None, -1), (3, 0, -2), (9,)],
    ids=str,
)
def test_slices_take_the_rows_python_takes(bounds):
    values = list("abcde")
    rows = rows_of(X, Slice("some", "x", *bounds), x=values)
    taken = [values[rows.source_row("some", row, "x")] for row in range(rows.num_rows("some"))]
    padded = (*bounds, None, None)[:3]
    assert taken == values[slice(*padded)]


def test_a_slice_of_a_scalar_is_a_vector_of_at_most_one_row():
    rows = rows_of(SCALAR, Slice("one", "s", 0, 5), Slice("none", "s", 1), Concat("c", ("one",)))
    assert (rows.num_rows("one"), rows.num_rows("none")) == (1, 0)
    assert not rows.is_scalar("one")


def test_concatenation_maps_rows_past_empty_and_repeated_sources():
    rows = rows_of(X, Y, SCALAR, Concat("c", ("x", "y", "s", "x")), x=["a", "b"], y=[])
    assert [rows.dependencies("c", row) for row in range(5)] == [
        (("x", 0),),
        (("x", 1),),
        (("s", 0),),
        (("x", 0),),
        (("x", 1),),
    ]
    assert rows.dependent_rows("c", "x", 1) == (1, 4)
    assert rows.source_row("c", 2, "s") == 0


def test_source_row_refuses_what_the_row_does_not_read():
    rows = rows_of(X, Y, Concat("c", ("x", "y")), x=["a"], y=["b"])
    with pytest.raises(WorkflowError, match="row 1 of operator 'c' comes from 'y', not 'x'"):
        rows.source_row("c", 1, "x")
    with pytest.raises(WorkflowError, match=r"'c' has 2 row\(s\), row 2 was asked for"):
        rows.source_row("c", 2, "x")


def test_histories_are_read_in_the_same_row():
    first = Llm("first", messages=(Message("user", text("static")),))
    second = Llm("second", messages=(Message("user", text(Reference("x"))),), history="first")
    rows = rows_of(X, first, second, x=["a", "b"])
    assert rows.dependencies("second", 1) == (("first", 0), ("x", 1))
    assert list(rows.dependent_rows("second", "first", 0)) == [0, 1]
