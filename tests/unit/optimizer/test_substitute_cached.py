import pytest

from helium import graphs, ops
from helium.errors import CacheError
from helium.optimizer.driver import Switches, optimize
from helium.optimizer.rules.merge_equal_rows import MergeEqualRows
from helium.optimizer.rules.substitute_cached import DictPromptCache, SubstituteCached
from helium.plan.calls import Call
from helium.plan.compiled_plan import bind
from helium.plan.operators import Sampling
from tests.unit.optimizer.golden import check_golden


def ask(content, **options):
    return ops.llm([ops.Msg("user", content)], **options)


def user_call(content, sampling=None):
    return Call((("user", content),), None, sampling or Sampling(), None)


def cache_of(answers):
    cache = DictPromptCache()
    for content, output in answers.items():
        cache.put(user_call(content), (output,))
    return cache


class CountingCache(DictPromptCache):
    def __init__(self):
        super().__init__()
        self.asked = []

    def get_many(self, calls):
        self.asked.append(list(calls))
        return super().get_many(calls)


def two_steps():
    draft = ask(ops.placeholder("x"), name="draft")
    return graphs.build({"answer": ask(["Polish: ", draft], name="final")})


def test_golden():
    draft = ask(ops.placeholder("x"), name="draft")
    conversation = graphs.build([ask("Go on.", history=draft, name="reply")])
    part = cache_of({"a": "A"})
    drafts = cache_of({"a": "A", "b": "B", "Polish: B": "B!"})
    two = two_steps().compile(x=["a", "b"])
    repeated = MergeEqualRows().apply(two_steps().compile(x=["a", "a", "b"]))
    cases = {
        "rows that are cached are known, the others stay": (two, part),
        "an operator that is cached as a whole becomes an input": (two, drafts),
        "a cached history stays while a later turn needs its messages": (
            conversation.compile(x=["a", "b"]),
            drafts,
        ),
        "equal rows share one entry": (repeated, drafts),
        "a scalar call becomes a scalar column": (two_steps().compile(x="a"), part),
    }
    check_golden(
        "substitute_cached",
        {
            claim: (compiled, SubstituteCached(cache).apply(compiled))
            for claim, (compiled, cache) in cases.items()
        },
    )


def test_a_plan_answered_by_the_cache_needs_no_call_and_keeps_no_llm_operator():
    cache = cache_of({"a": "A", "Polish: A": "A!"})
    optimized = optimize(two_steps().compile(x=["a", "a"]), Switches(), cache).compiled
    assert optimized.plan.llm_operators == ()
    assert len(optimized.plan.operators) == 2
    assert list(optimized.columns.values()) == [("A!", "A!")]


def test_cache_is_asked_once_per_operator_with_distinct_calls():
    cache = CountingCache()
    optimize(two_steps().compile(x=["a", "b", "a"]), Switches(), cache)
    assert cache.asked == [[user_call("a"), user_call("b")]]


def test_calls_that_are_drawn_anew_are_not_looked_up():
    cache = CountingCache()
    graph = graphs.build([ask(ops.placeholder("x"), temperature=1.0)])
    compiled = graph.compile(x=["a"])
    assert SubstituteCached(cache).apply(compiled) is compiled
    assert cache.asked == []


def test_nothing_behind_a_function_is_looked_up():
    cache = CountingCache()
    parsed = ops.apply("parse", ops.placeholder("x"))
    compiled = bind(graphs.build([ask(parsed)]).plan, {"x": ["a"]}, functions={"parse": str})
    SubstituteCached(cache).apply(compiled)
    assert cache.asked == []


def test_several_outputs_per_row_are_known_and_pass_through_a_choice():
    sampling = Sampling(temperature=1.0, seed=1, n=2)
    cache = cache_of({"second": "done"})
    cache.put(user_call("a", sampling), ("first", "second"))
    draws = ask(ops.placeholder("x"), sampling=sampling, name="draws")
    graph = graphs.build({"all": draws, "one": ask(draws.choice(1), name="final")})
    optimized = optimize(graph.compile(x=["a"]), Switches(), cache).compiled
    assert optimized.known == {"draws": {0: ("first", "second")}}
    assert [operator.name for operator in optimized.plan.llm_operators] == ["draws"]


def test_a_sliced_row_is_looked_up_under_its_source_row():
    draft = ask(ops.placeholder("x"), name="draft")
    graph = graphs.build({"answer": ask(draft[1:], name="final")})
    cache = cache_of({"b": "B", "B": "done"})
    optimized = optimize(graph.compile(x=["a", "b"]), Switches(), cache).compiled
    assert optimized.plan.llm_operators == ()


@pytest.mark.parametrize("answers", [[], [("x", "y")]], ids=["too few", "wrong n"])
def test_an_answer_that_does_not_fit_is_refused(answers):
    class WrongCache:
        def get_many(self, calls):
            return answers

    with pytest.raises(CacheError, match="'draft'"):
        SubstituteCached(WrongCache()).apply(two_steps().compile(x=["a"]))


def test_a_column_called_like_the_substitute_is_kept():
    x, taken = ops.placeholder("x"), ops.placeholder("cache:draft")
    final = ask([ask(x, name="draft"), taken], name="final")
    compiled = graphs.build([final]).compile(x=["a"], **{"cache:draft": ["mine"]})
    optimized = optimize(compiled, Switches(), cache_of({"a": "A"})).compiled
    assert sorted(optimized.columns.items()) == [
        ("cache:draft", ("mine",)),
        ("cache:draft'", ("A",)),
    ]
