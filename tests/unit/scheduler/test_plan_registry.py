"""The engine's plan registry: idempotent, bounded, least recently used first out."""

from helium.protocol import EnginePlan, PlanOperator, WorkflowContext
from vllm_helium.scheduler.plan_registry import PlanRegistry, stages_to_go


def make_plan(name: str) -> EnginePlan:
    return EnginePlan(version=1, workflow=name, operators=(PlanOperator(name="a", rank=3),))


def context_of(digest: str, operator: str = "a") -> WorkflowContext:
    return WorkflowContext(plan=digest, run="r", operator=operator)


def test_registering_twice_is_registering_once():
    registry = PlanRegistry(4, 1 << 20)
    first = registry.register(make_plan("w"))
    size = registry.num_bytes
    assert registry.register(make_plan("w")) == first
    assert (len(registry), registry.num_bytes) == (1, size)


def test_resolve_finds_the_operator_and_nothing_else():
    registry = PlanRegistry(4, 1 << 20)
    digest = registry.register(make_plan("w"))
    assert registry.resolve(context_of(digest)).rank == 3
    assert registry.resolve(context_of(digest, "ghost")) is None
    assert registry.resolve(context_of("f" * 64)) is None


def test_the_least_recently_used_plan_goes_first():
    registry = PlanRegistry(2, 1 << 20)
    one, two = registry.register(make_plan("1")), registry.register(make_plan("2"))
    registry.resolve(context_of(one))
    three = registry.register(make_plan("3"))
    assert [one in registry, two in registry, three in registry] == [True, False, True]


def test_the_byte_bound_holds_but_the_newest_plan_stays():
    registry = PlanRegistry(100, 1)
    for name in "abc":
        newest = registry.register(make_plan(name))
        assert len(registry) == 1 and newest in registry
    assert registry.drop(newest) and not registry.drop(newest)
    assert registry.num_bytes == 0 and registry.describe() == []


def test_whoever_needs_to_is_told_of_every_plan_that_goes():
    told = []
    registry = PlanRegistry(1, 1 << 20, told.append)
    first = registry.register(make_plan("1"))
    second = registry.register(make_plan("2"))
    registry.drop(second)
    registry.drop(second)
    assert told == [first, second]


def operators(**reads: tuple[str, ...]) -> list[PlanOperator]:
    return [PlanOperator(name=name, rank=0, reads=names) for name, names in reads.items()]


def test_the_longest_chain_that_waits_for_an_operator_is_counted_in_stages():
    diamond = operators(a=(), b=("a",), c=("b", "a", "a"), d=("a", "c"), lone=())
    assert stages_to_go(diamond) == {"a": 3, "b": 2, "c": 1, "d": 0, "lone": 0}
    assert stages_to_go(reversed(diamond)) == stages_to_go(diamond)


def test_chains_that_lead_elsewhere_or_nowhere_are_counted_all_the_same():
    assert stages_to_go(operators(a=("on another engine",), b=("a",))) == {"a": 1, "b": 0}
    assert set(stages_to_go(operators(a=("b",), b=("a",), c=("a",)))) == {"a", "b", "c"}


def test_a_long_chain_takes_no_recursion():
    chain = {f"o{number}": (f"o{number - 1}",) for number in range(20_000)}
    assert stages_to_go(operators(**chain))["o0"] == 19_999
