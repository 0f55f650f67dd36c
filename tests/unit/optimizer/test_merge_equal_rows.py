from helium import graphs, ops
from helium.optimizer.rules.merge_equal_rows import MergeEqualRows
from tests.unit.optimizer.golden import check_golden


def ask(content, **options):
    return ops.llm([ops.Msg("user", content)], **options)


def test_golden():
    x, y = ops.placeholder("x"), ops.placeholder("y")
    both = ask(["x ", x, " y ", y], name="both")
    two_columns = graphs.build([both]).compile(x=["a", "a", "b", "a"], y=["1", "2", "1", "1"])
    draw = ask(x, temperature=1.0, name="draw")
    after = ask(draw, name="after")
    random = graphs.build([after]).compile(x=["a", "a"])
    answer = ask(x, name="answer")
    parts = ops.concat([answer[0:1], answer, ops.data("a", name="text")], name="parts")
    rows = graphs.build([ask(parts, name="again")]).compile(x=["a", "b", "a"])
    reply = ask("Go on.", history=ask(x, name="first"), name="reply")
    conversation = graphs.build([reply]).compile(x=["a", "b", "a"])
    cases = {
        "rows are equal where all operands are": two_columns,
        "rows of a random call differ, and so does what reads them": random,
        "slices and concatenations keep track of whose rows they are": rows,
        "a conversation is equal where its history is": conversation,
    }
    check_golden(
        "merge_equal_rows",
        {claim: (compiled, MergeEqualRows().apply(compiled)) for claim, compiled in cases.items()},
    )


def test_distinct_rows_return_the_binding_itself():
    compiled = graphs.build([ask(ops.placeholder("x"))]).compile(x=["a", "b"])
    assert MergeEqualRows().apply(compiled) is compiled


def test_a_scalar_beside_a_batch_does_not_make_rows_equal():
    x, tone = ops.placeholder("x"), ops.placeholder("tone")
    graph = graphs.build([ask([x, tone], name="ask")])
    merged = MergeEqualRows().apply(graph.compile(x=["a", "b", "a"], tone="brief"))
    assert merged.representatives == {"ask": (0, 1, 0)}


def test_seeded_calls_with_several_outputs_merge_rows():
    graph = graphs.build([ask(ops.placeholder("x"), temperature=1.0, seed=1, n=2, name="ask")])
    merged = MergeEqualRows().apply(graph.compile(x=["a", "a"]))
    assert list(merged.calls("ask")) == [0]


def test_rows_of_different_operators_are_not_equal_in_a_concatenation():
    x = ops.placeholder("x")
    parts = ops.concat([ask(["One: ", x], name="one"), ask(["Two: ", x], name="two")])
    compiled = graphs.build([ask(parts, name="again")]).compile(x=["a", "b"])
    assert MergeEqualRows().apply(compiled) is compiled
