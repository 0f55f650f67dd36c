"""``LLM(MODEL, helium=...)`` as a user meets it, against the same engine without Helium."""

import asyncio

import msgspec
import pytest

from benchmarks.workflows import mapreduce
from helium.errors import ConfigError, EngineError, PlanError
from helium.plan.interpret import interpret
from helium.plan.operators import Sampling
from helium.protocol import EnginePlan, PlanOperator, WorkflowContext
from helium.runtime import ModelCall, RunError, invoke_async
from helium.templates.tokenizer import TransformersTokenizer
from tests.in_process_engine import in_process_llm
from tests.integration.conftest import FAST_ENGINE_ARGUMENTS

pytestmark = pytest.mark.engine

PLAN = EnginePlan(
    version=1,
    workflow="w",
    operators=(PlanOperator(name="a", rank=1), PlanOperator(name="b", rank=0)),
)


@pytest.fixture(scope="module")
def llm(tiny_model):
    with in_process_llm(tiny_model, max_num_seqs=8, helium=True) as llm:
        yield llm


@pytest.fixture(scope="module")
def stock(tiny_model):
    with in_process_llm(tiny_model, max_num_seqs=8) as llm:
        yield llm


def scheduler_of(llm):
    return llm.llm_engine.engine_core.engine_core.scheduler


def greedy(max_tokens=8):
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)


def texts(outputs):
    return [output.outputs[0].token_ids for output in outputs]


def test_helium_off_is_upstreams_scheduler(stock):
    from vllm.v1.core.sched.scheduler import Scheduler

    assert type(scheduler_of(stock)) is Scheduler
    assert stock.llm_engine.vllm_config.helium_config is None
    with pytest.raises(EngineError, match="without Helium"):
        from vllm_helium.integration.engine_rpc import call_engines

        call_engines(stock, "status")


def test_a_context_is_read_and_changes_no_output(llm, stock):
    from vllm_helium.integration.engine_rpc import call_engines

    (answer,) = call_engines(llm, "register_plan", PLAN.to_json())
    prompts = [f"the {word} garden" for word in ("red", "green", "blue")]
    contexts = [
        WorkflowContext(plan=answer["digest"], run="r", operator="a"),
        {"plan": answer["digest"], "run": "r", "operator": "b", "row": 3},
        None,
    ]
    outputs = llm.generate(prompts, greedy(), use_tqdm=False, workflow=contexts)
    assert texts(outputs) == texts(stock.generate(prompts, greedy(), use_tqdm=False))
    assert [output.helium and output.helium["planned"] for output in outputs] == [True, True, None]


def test_chat_takes_a_context_for_all(llm, stock):
    messages = [[{"role": "user", "content": text}] for text in ("one", "two")]
    context = WorkflowContext(plan="f" * 64, run="r", operator="a")
    outputs = llm.chat(messages, greedy(), use_tqdm=False, workflow=context)
    assert texts(outputs) == texts(stock.chat(messages, greedy(), use_tqdm=False))
    assert all("not registered" in output.helium["note"] for output in outputs)


def test_a_bad_context_is_refused_before_the_engine_sees_it(llm):
    with pytest.raises(PlanError, match="plan"):
        llm.generate(["x"], greedy(), use_tqdm=False, workflow={"plan": "short"})
    with pytest.raises(PlanError, match="2 contexts for 1"):
        good = WorkflowContext(plan="f" * 64, run="r", operator="a")
        llm.generate(["x"], [greedy()], use_tqdm=False, workflow=[good, good])
    assert texts(llm.generate(["x"], greedy(), use_tqdm=False))


def test_garbage_in_extra_args_is_ordinary_traffic(llm):
    params = greedy()
    params.extra_args = {"helium": {"plan": 7, "segment_lengths": [-1]}}
    (output,) = llm.generate(["x"], params, use_tqdm=False)
    assert output.helium is None and output.outputs[0].token_ids


def test_the_plan_decides_the_order_of_waiting_requests(llm):
    from vllm_helium.integration.engine_rpc import call_engines

    (answer,) = call_engines(llm, "register_plan", PLAN.to_json())
    scheduler = scheduler_of(llm)
    started = []
    original = scheduler.schedule

    def record(*args, **kwargs):
        output = original(*args, **kwargs)
        started.extend(request.req_id for request in output.scheduled_new_reqs)
        return output

    scheduler.schedule = record
    try:
        contexts = [
            WorkflowContext(plan=answer["digest"], run="r", operator="a" if row < 12 else "b")
            for row in range(24)
        ]
        ids = llm.enqueue([f"row {row}" for row in range(24)], greedy(4), workflow=contexts)
        llm.wait_for_completion(use_tqdm=False)
    finally:
        del scheduler.schedule
    order = [
        next(row for row, i in enumerate(ids) if started_id.startswith(i)) for started_id in started
    ]
    assert sorted(order[:12]) == list(range(12, 24)), "rank 0 is operator b, rows 12 to 23"


def naive(llm, compiled):
    """Runs a workflow call by call, in plan order, with nothing of ours."""
    from vllm_helium.engine_calls import sampling_params

    def model(call, operator, row):
        messages = [{"role": role, "content": content} for role, content in call.messages]
        (output,) = llm.chat([messages], sampling_params(call.sampling), use_tqdm=False)
        return tuple(choice.text for choice in output.outputs)

    return interpret(compiled, model)


def test_a_workflow_gives_what_a_naive_sequential_run_gives(llm, stock):
    from vllm_helium.llm_backend import LLMBackend

    workload = mapreduce.build_mmlu(3, scale=0.2, max_tokens=6)
    expected = naive(stock, workload.graph.compile(**workload.batch))
    tokenizer = TransformersTokenizer(llm.get_tokenizer())
    with LLMBackend(llm) as backend:
        result = asyncio.run(invoke_async(workload.graph, workload.batch, backend, tokenizer))
    assert result.outputs == expected
    assert result.failures == []
    assert result.total.num_calls == 3 * 8
    plain = stock.run_workflow(workload.graph, workload.batch, use_tqdm=False)
    assert plain.outputs == expected


def test_run_workflow_also_works_where_an_event_loop_runs(llm):
    workload = mapreduce.build_mmlu(1, scale=0.1, max_tokens=2)

    async def notebook():
        return llm.run_workflow(workload.graph, workload.batch, use_tqdm=False)

    result = asyncio.run(notebook())
    assert result.failures == [] and len(result.outputs["answer"]) == 1


def test_a_run_of_an_id_goes_on_and_only_for_the_same_request(llm, tmp_path):
    workload = mapreduce.build_mmlu(2, scale=0.1, max_tokens=3)
    files = {"store": tmp_path / "runs.db", "profiles": tmp_path / "profiles"}
    arguments = {"run": "r1", "use_tqdm": False, **files}
    first = llm.run_workflow(workload.graph, workload.batch, **arguments)
    again = llm.run_workflow(workload.graph, workload.batch, **arguments)
    assert first.outputs == again.outputs and again.rows() == first.rows()
    assert (first.total.num_calls, again.total.num_calls) == (16, 0)
    with pytest.raises(RunError, match="another workflow, batch or cache_salt"):
        llm.run_workflow(workload.graph, workload.batch, cache_salt="other", **arguments)
    with pytest.raises(ConfigError, match="store=PATH"):
        llm.run_workflow(workload.graph, workload.batch, run="r1")


def test_a_prompt_cache_answers_a_second_run_and_keeps_tenants_apart(llm, tmp_path):
    workload = mapreduce.build_mmlu(2, scale=0.1, max_tokens=3)
    arguments = {"prompt_cache": tmp_path / "prompts.db", "use_tqdm": False}
    first = llm.run_workflow(workload.graph, workload.batch, **arguments)
    again = llm.run_workflow(workload.graph, workload.batch, **arguments)
    other = llm.run_workflow(workload.graph, workload.batch, cache_salt="other", **arguments)
    assert first.outputs == again.outputs == other.outputs
    assert [result.total.num_calls for result in (first, again, other)] == [16, 0, 16]


def test_cached_answers_end_with_the_weights_that_gave_them(llm, stock, tmp_path):
    workload = mapreduce.build_mmlu(1, scale=0.1, max_tokens=3)
    arguments = {"prompt_cache": tmp_path / "prompts.db", "use_tqdm": False}

    def outputs():
        result = llm.run_workflow(workload.graph, workload.batch, **arguments)
        return result.outputs, result.total.num_calls

    def scale(factor):
        def work(worker):
            for parameter in worker.get_model().parameters():
                parameter.data.mul_(factor)

        llm.collective_rpc(work)
        llm.reset_prefix_cache()

    first, num_calls = outputs()
    assert num_calls == 8 and outputs() == (first, 0)
    scale(-0.5)
    try:
        changed, num_calls = outputs()
        assert num_calls == 8 and changed != first, "the weights give other answers"
        assert outputs() == (changed, 0)
    finally:
        scale(-2.0)
    # Equal weights again, but nobody knows.
    assert outputs() == (first, 8)


def request_of(text, **sampling):
    from helium.plan.calls import Call

    call = Call((("user", text),), None, msgspec.convert(sampling, Sampling), None)
    return ModelCall(call)


def test_the_backend_names_what_it_refuses_and_goes_on(llm):
    from vllm_helium.llm_backend import LLMBackend

    async def main(backend):
        with pytest.raises(EngineError, match="maximum"):
            await backend.call(request_of("long " * 2_000, max_tokens=2))
        return await backend.call(request_of("short", max_tokens=2))

    with LLMBackend(llm) as backend:
        assert len(asyncio.run(main(backend)).texts) == 1


def test_cancelled_calls_free_their_blocks(llm):
    from vllm_helium.llm_backend import LLMBackend

    pool = scheduler_of(llm).kv_cache_manager.block_pool
    before = pool.get_num_free_blocks()

    async def main(backend):
        tasks = [
            asyncio.create_task(
                backend.call(request_of(f"{row}", max_tokens=1500, ignore_eos=True))
            )
            for row in range(6)
        ]
        await asyncio.sleep(0.3)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await backend.call(request_of("after", max_tokens=2))

    with LLMBackend(llm) as backend:
        asyncio.run(main(backend))
    assert scheduler_of(llm).get_num_unfinished_requests() == 0
    assert pool.get_num_free_blocks() == before


def test_a_closed_backend_ends_every_call(llm):
    from vllm_helium.llm_backend import LLMBackend

    async def main():
        backend = LLMBackend(llm)
        task = asyncio.create_task(backend.call(request_of("x", max_tokens=1500, ignore_eos=True)))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(backend.close)
        with pytest.raises(EngineError, match="closed"):
            await task
        with pytest.raises(EngineError, match="closed"):
            await backend.call(request_of("y", max_tokens=2))
        with pytest.raises(EngineError, match="closed"):
            await backend.weights()

    asyncio.run(main())


def test_bad_options_are_refused_at_construction(tiny_model):
    from vllm import LLM

    with pytest.raises(ConfigError, match=r"helium\.order"):
        LLM(str(tiny_model), helium={"order": "sideways"})
    scheduler = "vllm.v1.core.sched.scheduler.Scheduler"
    with pytest.raises(Exception, match="scheduler_cls"):
        LLM(str(tiny_model), helium=True, scheduler_cls=scheduler, **FAST_ENGINE_ARGUMENTS)
