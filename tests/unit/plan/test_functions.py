import pytest

from helium.errors import WorkflowError
from helium.plan.functions import FunctionRegistry


def parse(value):
    return value


def other(value):
    return value


def closure(suffix):
    def add(value):
        return value + suffix

    return add


def test_a_function_is_known_by_module_and_name_or_by_the_name_given():
    registry = FunctionRegistry()
    assert registry.register(parse) == f"{__name__}.parse"
    assert registry.register(parse, "short") == "short"
    assert registry["short"] is parse
    assert set(registry) == {f"{__name__}.parse", "short"}


def test_a_name_cannot_be_taken_by_another_function():
    registry = FunctionRegistry()
    registry.register(parse, "f")
    with pytest.raises(WorkflowError, match=r"'f' already belongs to .*parse; register .*other"):
        registry.register(other, "f")


def test_two_closures_are_two_functions():
    registry = FunctionRegistry()
    registry.register(closure("a"), "add")
    with pytest.raises(WorkflowError, match="already belongs"):
        registry.register(closure("b"), "add")


def test_the_same_definition_again_replaces_itself():
    registry = FunctionRegistry()
    scope = {"__name__": "notebook"}
    for body in ("1", "2"):
        exec(f"def cell(value):\n    return {body!r}", scope)
        registry.register(scope["cell"])
    assert registry["notebook.cell"]("x") == "2"


def test_a_lambda_needs_a_name():
    with pytest.raises(WorkflowError, match="no stable name"):
        FunctionRegistry().register(lambda value: value)


def test_an_unknown_name_suggests_near_ones_and_acts_as_a_missing_key():
    registry = FunctionRegistry()
    registry.register(parse, "parse")
    with pytest.raises(WorkflowError, match=r"'prase' is not registered.*\['parse'\]"):
        registry["prase"]
    assert "prase" not in registry
    assert registry.get("prase") is None


def test_methods_of_builtin_types_have_a_name():
    registry = FunctionRegistry()
    assert registry.register(str.strip) == "builtins.str.strip"
    assert registry.register(len) == "builtins.len"
