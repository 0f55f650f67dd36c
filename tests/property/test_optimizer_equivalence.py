"""The optimized plan gives what the unoptimized one gives, on random plans, with any rules off."""

import random
from collections import Counter

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helium.optimizer.driver import Switches, optimize, optimize_plan
from helium.optimizer.merge_plans import Submission, merge_plans
from helium.optimizer.rules.substitute_cached import DictPromptCache
from helium.plan.calls import Call
from helium.plan.compiled_plan import CompiledPlan, bind
from helium.plan.interpret import interpret
from helium.plan.logical_plan import LogicalPlan
from helium.plan.operators import (
    Concat,
    Data,
    Format,
    Input,
    Lambda,
    Llm,
    Output,
    Reference,
    Slice,
)
from helium.plan.rewrite import renamed, replace_reads
from helium.plan.text import render
from tests.property.random_plans import FUNCTIONS, RandomPlan, fake_model, random_plan

RULES = Switches.__struct_fields__
plans = st.builds(random_plan, st.integers(0, 2**32), st.integers(0, 14))
switches = st.sets(st.sampled_from(RULES)).map(lambda off: Switches().without(*off))
many = settings(max_examples=2_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
some = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Recorder:
    """The fake model, with what it was asked."""

    def __init__(self):
        self.asked: list[tuple[str, int]] = []
        self.answers: dict[bytes, tuple[Call, tuple[str, ...]]] = {}

    def __call__(self, call: Call, operator: str, row: int) -> tuple[str, ...]:
        outputs = fake_model(call, operator, row)
        self.asked.append((operator, row))
        self.answers[msgspec.json.encode(call)] = (call, outputs)
        return outputs

    def cache_of(self, seed: int) -> DictPromptCache:
        """Returns a cache with a random part of the answers, those it should not use as well."""
        rng = random.Random(seed)
        share = rng.choice((0.0, 0.3, 0.7, 1.0))
        cache = DictPromptCache()
        for call, outputs in self.answers.values():
            if rng.random() < share:
                cache.put(call, outputs)
        return cache


def run_demanded(compiled: CompiledPlan, model) -> dict[str, list]:
    """Runs as a runtime does: only demanded rows, known outputs and representatives used."""
    values: dict[tuple[str, int], object] = {}

    def value(name, row):
        row = compiled.representatives[name][row] if name in compiled.representatives else row
        known = compiled.known.get(name, {})
        if row in known:
            return known[row][0] if len(known[row]) == 1 else known[row]
        return values[name, row]

    def read(operator, row, name):
        return value(name, compiled.rows.source_row(operator.name, row, name))

    def fill(operator, row, parts):
        def value_of(reference: Reference) -> str:
            found = read(operator, row, reference.operator)
            return found if isinstance(found, str) else found[reference.choice]

        return render(parts, value_of)

    def compute(operator, row):
        match operator:
            case Input() | Data():
                return compiled.value(operator, row)
            case Format():
                return fill(operator, row, operator.text)
            case Lambda():
                arguments = (read(operator, row, name) for name in operator.arguments)
                lists = (list(a) if isinstance(a, tuple) else a for a in arguments)
                return FUNCTIONS[operator.function](*lists)
            case Slice() | Concat():
                ((name, source_row),) = compiled.rows.dependencies(operator.name, row)
                return value(name, source_row)
            case Output():
                return read(operator, row, operator.source)
            case Llm():
                conversation = compiled.plan.conversation(operator.name)
                messages = tuple((m.role, fill(operator, row, m.content)) for m in conversation)
                prompt = None if operator.prompt is None else fill(operator, row, operator.prompt)
                call = Call(messages, prompt, operator.sampling, operator.model)
                outputs = model(call, operator.name, row)
                return outputs[0] if len(outputs) == 1 else outputs

    for operator in compiled.plan.operators:
        for row in compiled.demand.rows(operator.name):
            values[operator.name, row] = compute(operator, row)
    return {
        output.key: [values[output.name, row] for row in range(compiled.rows.num_rows(output.name))]
        for output in compiled.plan.outputs
    }


def bound(case: RandomPlan) -> CompiledPlan:
    return bind(case.plan, case.batch, functions=FUNCTIONS)


@many
@given(plans, switches, st.integers(0, 99))
def test_optimized_plan_gives_equal_outputs(case, switches, seed):
    compiled = bound(case)
    reference = Recorder()
    expected = interpret(compiled, reference, FUNCTIONS)

    optimized = optimize(compiled, switches, reference.cache_of(seed)).compiled

    # The plan alone, then with everything that says what need not be computed.
    assert interpret(optimized, fake_model, FUNCTIONS) == expected
    demanded = Recorder()
    assert run_demanded(optimized, demanded) == expected
    assert Counter(demanded.asked).keys() <= set(reference.asked)
    assert max(Counter(demanded.asked).values(), default=0) <= 1


@some
@given(plans)
def test_all_rules_make_no_call_twice(case):
    optimized = optimize(bound(case)).compiled
    for operator in optimized.plan.llm_operators:
        assert list(optimized.calls(operator.name)) == sorted(set(optimized.calls(operator.name)))
    keys = [
        (operator.history, operator.messages, operator.prompt, operator.model, repr(sampling))
        for operator in optimized.plan.llm_operators
        if (sampling := operator.sampling).is_deterministic and sampling.temperature > 0
    ]
    assert len(keys) == len(set(keys))


@some
@given(plans, switches)
def test_optimizing_twice_changes_nothing_more(case, switches):
    once = optimize_plan(case.plan, switches).plan
    again = optimize_plan(once, switches)
    assert again.plan.llm_operators == once.llm_operators
    assert again.plan == once


@some
@given(plans, plans, st.sampled_from(["acme", "other"]), switches)
def test_merged_plans_give_each_submission_its_own_outputs(first, second, tenant, switches):
    submissions = [
        Submission("s1", "acme", bound(first)),
        Submission("s2", tenant, bound(second)),
        Submission("s3", "acme", bound(first)),
    ]
    expected = {s.id: interpret(s.compiled, fake_model, FUNCTIONS) for s in submissions}
    results = {}
    for merged in merge_plans(submissions):
        optimized = optimize(merged.compiled, switches).compiled
        results.update(merged.split(run_demanded(optimized, fake_model)))
    assert results == expected


@some
@given(plans)
def test_json_round_trip_keeps_plan_and_bytes(case):
    raw = case.plan.to_json()
    again = LogicalPlan.from_json(raw)
    assert again == case.plan
    assert hash(again) == hash(case.plan)
    assert again.to_json() == raw
    assert again.digest() == case.plan.digest()


@some
@given(plans, st.integers(0, 99))
def test_canonical_form_ignores_names_and_order(case, seed):
    other = shuffled(case.plan, random.Random(seed))
    other.validate()
    assert other.canonical() == case.plan.canonical()
    case.plan.canonical().validate()


@some
@given(plans)
def test_dependent_rows_invert_dependencies(case):
    compiled = bound(case)
    forward = set()
    backward = set()
    for operator in compiled.plan.operators:
        for row in range(compiled.rows.num_rows(operator.name)):
            for source in compiled.rows.dependencies(operator.name, row):
                forward.add((*source, operator.name, row))
        for name in operator.reads:
            for source_row in range(compiled.rows.num_rows(name)):
                for row in compiled.rows.dependent_rows(operator.name, name, source_row):
                    backward.add((name, source_row, operator.name, row))
    assert backward == forward


def shuffled(plan: LogicalPlan, rng: random.Random) -> LogicalPlan:
    """Returns the plan under other names, in another topological order."""
    numbers = list(range(len(plan.operators)))
    rng.shuffle(numbers)
    names = {op.name: f"n{number}" for op, number in zip(plan.operators, numbers, strict=True)}
    waiting = list(plan.operators)
    done: set[str] = set()
    result = []
    while waiting:
        ready = [operator for operator in waiting if done.issuperset(operator.reads)]
        operator = rng.choice(ready)
        waiting.remove(operator)
        done.add(operator.name)
        result.append(renamed(replace_reads(operator, names), names[operator.name]))
    return LogicalPlan(tuple(result))
