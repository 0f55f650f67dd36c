"""How a context gets from the API into ``extra_args`` and back out."""

import pytest

from helium.errors import PlanError
from helium.protocol import WorkflowContext
from vllm_helium.integration.offline_workflow_argument import with_workflow
from vllm_helium.request import EXTRA_ARGS_KEY, parse_context, read_context, write_context

CONTEXT = WorkflowContext(plan="1" * 64, run="r", operator="o", row=2, segment_lengths=(4, 5))


class FakeParams:
    """The part of ``SamplingParams`` that carries a context."""

    def __init__(self, extra_args=None):
        self.extra_args = extra_args

    def clone(self):
        return FakeParams(self.extra_args)


def test_context_survives_the_trip():
    extra_args = {"mine": 1}
    write_context(extra_args, CONTEXT)
    assert read_context(extra_args) == CONTEXT
    assert extra_args["mine"] == 1


def test_a_client_cannot_smuggle_a_context_in():
    extra_args = {EXTRA_ARGS_KEY: {"plan": "1" * 64, "run": "r", "operator": "o"}}
    write_context(extra_args, None)
    assert read_context(extra_args) is None


@pytest.mark.parametrize(
    "raw", ["text", 7, [], {"plan": 3}, {"plan": "x", "run": "", "operator": ""}]
)
def test_the_engine_takes_anything_unreadable_as_ordinary(raw):
    assert read_context({EXTRA_ARGS_KEY: raw}) is None


def test_parse_context_checks_values_built_in_python_too():
    with pytest.raises(PlanError, match="row"):
        parse_context(WorkflowContext(plan="1" * 64, run="r", operator="o", row=-1))
    with pytest.raises(PlanError, match="expected an object, got list"):
        parse_context([CONTEXT])


def test_one_context_serves_every_prompt_and_the_callers_params_stay_clean():
    params = FakeParams({"keep": 1})
    carried = with_workflow(params, CONTEXT)
    assert read_context(carried.extra_args) == CONTEXT
    assert params.extra_args == {"keep": 1}
    assert [read_context(p.extra_args) for p in with_workflow([params] * 2, CONTEXT)] == [
        CONTEXT
    ] * 2


def test_contexts_are_paired_with_prompts_one_by_one():
    first, second = with_workflow(FakeParams(), [CONTEXT, None])
    assert read_context(first.extra_args) == CONTEXT
    assert read_context(second.extra_args) is None
    with pytest.raises(PlanError, match="3 contexts for 2"):
        with_workflow([FakeParams()] * 2, [CONTEXT] * 3)
    with pytest.raises(PlanError, match="got str"):
        with_workflow(FakeParams(), "plan")


def test_no_context_returns_the_same_object():
    params = FakeParams()
    assert with_workflow(params, None) is params
