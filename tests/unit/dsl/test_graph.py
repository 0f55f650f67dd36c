import re

import pytest

import helium
from helium import graphs, ops
from helium.errors import WorkflowError


def test_the_paper_listing_works():
    q = ops.placeholder("q")
    context = ops.data("Be brief.", name="context")
    question = ops.fmt("{} Question: {x}", context, x=q)
    experts = [
        ops.llm([ops.Msg("system", f"You are expert {i}."), ops.Msg("user", question)])
        for i in range(2)
    ]
    summary = ops.llm([ops.Msg("user", ops.fmt("{}\n{}", *experts))], name="summary")
    graph = graphs.build([summary])
    assert str(graph).splitlines() == [
        'context = data "Be brief."',
        "q = input q",
        'format = format "{context} Question: {q}"',
        'llm = llm system: "You are expert 0." user: "{format}"',
        'llm_2 = llm system: "You are expert 1." user: "{format}"',
        'format_2 = format "{llm}\\n{llm_2}"',
        'summary = llm user: "{format_2}"',
        "summary.output = output summary as summary",
    ]
    compiled = graph.compile(q=["a", "b"])
    assert compiled.rows.num_rows("summary") == 2


def test_equal_programs_give_equal_plans():
    def program():
        q = ops.placeholder("q")
        return graphs.build([ops.llm([ops.Msg("user", q)]), q[1:]])

    assert program() == program()
    assert program().plan.to_json() == program().plan.to_json()


def test_only_what_the_outputs_need_is_built():
    q = ops.placeholder("q")
    ops.llm([ops.Msg("user", q)], name="unused")
    assert "unused" not in graphs.build([q]).plan.by_name


def test_outputs_are_keyed_by_mapping_by_name_or_explicitly():
    q = ops.placeholder("q")
    assert [o.key for o in graphs.build({"a": q, "b": q}).plan.outputs] == ["a", "b"]
    outputs = graphs.build([q, ops.output(q, "mine"), ops.output(q[1:])]).plan.outputs
    assert [o.key for o in outputs] == ["q", "mine", "slice"]


def test_derived_names_avoid_given_ones_and_keep_their_scope():
    given = ops.data("x", name="llm")
    with ops.scope("round_1"):
        call = ops.llm([ops.Msg("user", given)])
    other = ops.llm([ops.Msg("user", call)])
    names = list(graphs.build([other]).plan.by_name)
    assert names == ["llm", "round_1/llm", "llm_2", "llm_2.output"]


def test_two_operators_with_one_name_are_named_with_both_lines():
    one = ops.data("x", name="twin")
    two = ops.data("y", name="twin")
    with pytest.raises(WorkflowError, match=r"'twin'.*has the name of another one") as error:
        graphs.build([one, two])
    assert len(set(re.findall(r"test_graph\.py:\d+", str(error.value)))) == 2


def test_errors_of_the_plan_name_the_line_of_the_user():
    call = ops.llm([ops.Msg("user", "x")], n=2, name="draws")
    with pytest.raises(WorkflowError, match=r"operator 'draws' \(.*test_graph.py:\d+\) has n=2"):
        graphs.build([call])


def test_errors_of_the_batch_name_the_lines_of_the_user():
    x, y = ops.placeholder("x"), ops.placeholder("y")
    graph = graphs.build([ops.fmt("{}{}", x, y, name="both")])
    with pytest.raises(WorkflowError, match=r"'both' \(.*test_graph.py:\d+\) reads operator 'x'"):
        graph.compile(x=["a"], y=["b", "c"])


def test_a_string_for_a_column_goes_with_every_row():
    x, y = ops.placeholder("x"), ops.placeholder("y")
    graph = graphs.build([ops.fmt("{}{}", x, y, name="both")])
    assert graph.compile(x=["a", "b"], y="c").rows.num_rows("both") == 2


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda q: q, "takes a list of nodes"),
        (lambda q: ["q"], "takes nodes, got str"),
        (lambda q: {"a": ops.output(q)}, "is an output already"),
        (lambda q: [q, q], "result key 'q'"),
        (lambda q: [], "none of its 0 operators is an output"),
    ],
)
def test_build_refuses_what_are_no_outputs(outputs, message):
    with pytest.raises(WorkflowError, match=message):
        graphs.build(outputs(ops.placeholder("q")))


def test_a_graph_of_thousands_needs_no_recursion():
    node = ops.placeholder("q")
    for _ in range(5_000):
        node = ops.fmt("{}", node)
    assert len(graphs.build([node]).plan.operators) == 5_002


def test_public_names_are_there_and_others_are_not():
    for name in helium.__all__:
        assert getattr(helium, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = helium.nothing
