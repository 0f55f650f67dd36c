"""One guard per patch: the hook is in the installed vLLM and upstream still works as it assumes.

These fail, and never skip, where the installed ``vllm`` is not this fork or upstream has drifted.
"""

import dataclasses
import inspect
import sys
import types
import typing
from importlib import metadata
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import patches as tool


def source(function) -> str:
    return inspect.getsource(function)


def test_the_installed_vllm_is_this_fork():
    import vllm

    assert "+helium." in metadata.version("vllm")
    assert vllm.__version__ == metadata.version("vllm")


@pytest.mark.parametrize("patch", tool.load_series(), ids=lambda patch: patch.slug)
def test_every_line_of_every_patch_is_installed(patch):
    import vllm

    root = Path(vllm.__file__).parent.parent
    for path, hunks in tool.hunks_by_path([patch]).items():
        text = (root / path).read_text()
        for hunk in hunks:
            assert "\n".join(hunk.lines) + "\n" in text, f"{patch.slug}: {path} lacks a hunk"


def test_every_patch_has_a_guard():
    guards = {name.removeprefix("test_guard_") for name in globals() if "test_guard_" in name}
    assert guards >= {patch.slug.replace("-", "_") for patch in tool.load_series()}


def test_guard_engine_config():
    from vllm.config import SchedulerConfig, VllmConfig

    hints = {field.name: field for field in dataclasses.fields(VllmConfig)}
    assert hints["helium_config"].default is None
    assert "helium_config" not in source(VllmConfig.compute_hash)
    text = source(VllmConfig.__post_init__)
    platform = text.index("check_and_update_config(self)")
    assert platform < text.index("self.helium_config.finalize(self)")
    assert "scheduler_cls" in {field.name for field in dataclasses.fields(SchedulerConfig)}
    assert "async_scheduling" in {field.name for field in dataclasses.fields(SchedulerConfig)}


def test_guard_engine_args(tmp_path):
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    assert {field.name: field.default for field in dataclasses.fields(EngineArgs)}[
        "helium"
    ] is False
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    argv = ["--model", str(tmp_path), "--helium-max-plans", "3"]
    args = EngineArgs.from_cli_args(parser.parse_args(argv))
    assert args.helium == {"max_plans": 3}
    assert "helium_config=make_helium_config(self.helium)" in source(
        EngineArgs.create_engine_config
    )


def test_guard_api_server_count():
    from vllm.entrypoints.cli.serve import ServeSubcommand

    text = source(ServeSubcommand.cmd)
    ours = text.index("default_api_server_count(args)")
    assert text.index("args.api_server_count = 0") < ours, "headless has decided by then"
    assert ours < text.index("if args.api_server_count is None:")
    assert ours < text.index("args.api_server_count = args.data_parallel_size")


def test_guard_texts_so_far():
    from vllm.v1.engine.detokenizer import BaseIncrementalDetokenizer
    from vllm.v1.engine.output_processor import OutputProcessor, RequestState

    for name in ("request_states", "external_req_ids"):
        assert f"self.{name}" in source(OutputProcessor.add_request)
    assert "self.request_index = request_index" in source(RequestState.__init__)
    state = types.SimpleNamespace(output_text="abcd", stop_buffer_length=1)
    before = dict(vars(state))
    look = BaseIncrementalDetokenizer.get_next_output_text
    assert look(state, finished=False, delta=False) == "abc"
    assert vars(state) == before, "looking changes nothing"


def test_guard_engine_rpc():
    from vllm.v1.engine.core import EngineCore, EngineCoreProc
    from vllm.v1.engine.core_client import AsyncMPClient, InprocClient, SyncMPClient

    assert "self.scheduler.helium_rpc" in source(EngineCore.helium_rpc)
    assert "getattr(self, method_name)" in source(EngineCoreProc._handle_client_request)
    assert "failure_message" in source(EngineCoreProc._invoke_utility_method)
    assert inspect.iscoroutinefunction(AsyncMPClient.call_utility_all_async)
    assert callable(SyncMPClient.call_utility)
    assert "self.engine_core = EngineCore(" in source(InprocClient.__init__)


def test_guard_weights_revision():
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.core import EngineCore

    told = "note_weights(self.scheduler, "
    for method, work in [
        (EngineCore.sleep, "model_executor.sleep("),
        (EngineCore.add_lora, "model_executor.add_lora("),
        (EngineCore.collective_rpc, "model_executor.collective_rpc("),
    ]:
        text = source(method)
        assert text.index(told) < text.index(work), "the scheduler is told first"
    assert "load_inplace" in LoRARequest.__struct_fields__
    # Everything that updates weights goes that way.
    from vllm.v1.engine.async_llm import AsyncLLM

    for method in (AsyncLLM.start_weight_update, AsyncLLM.update_weights):
        assert "self.collective_rpc(" in source(method)


def test_guard_openai_workflow_field():
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    for model in (ChatCompletionRequest, CompletionRequest, ResponsesRequest):
        assert model.model_fields["workflow"].default is None
        text = source(model.to_sampling_params)
        assert text.index("attach_workflow(") < text.index("extra_args=")


def test_guard_offline_workflow_argument():
    from vllm import LLM

    for method in (LLM.generate, LLM.chat, LLM.enqueue, LLM.enqueue_chat):
        names = list(inspect.signature(method).parameters)
        assert names[-1] == "workflow", "it must come last, so that positional calls keep working"
        text = source(method)
        assert text.index("with_workflow(") < text.index("return self._")


def test_guard_offline_run_workflow():
    from vllm import LLM

    assert list(inspect.signature(LLM.run_workflow).parameters)[1:3] == ["graph", "inputs"]
    assert "llm_engine" in source(LLM.__init__) and callable(LLM.get_tokenizer)


def test_guard_async_run_workflow():
    from vllm.v1.engine.async_llm import AsyncLLM

    assert list(inspect.signature(AsyncLLM.run_workflow).parameters)[1:3] == ["graph", "inputs"]


def test_guard_helium_routes():
    from vllm.entrypoints.launchers.api_server import routers

    text = source(routers.register_api_routers)
    assert "register_helium_routes(app, args)" in text
    parameters = inspect.signature(routers.register_api_routers).parameters
    assert {"args", "app"} <= set(parameters)


def test_guard_request_report():
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.output_processor import OutputProcessor, RequestState
    from vllm.v1.metrics.stats import PrefillStats
    from vllm.v1.request import Request

    assert {field.name: field.default for field in dataclasses.fields(PrefillStats)}[
        "helium"
    ] is None
    assert typing.get_type_hints(RequestOutput.__init__)["helium"] is not None
    assert "helium=self.helium" in source(RequestState._new_request_output)
    assert "req_state.helium" in source(OutputProcessor.process_outputs)
    assert "PrefillStats()" in source(Request.__init__), "the scheduler writes on it when adding"


def test_guard_openai_response_report():
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
    from vllm.entrypoints.serve.engine.protocol import OpenAIBaseModel

    assert OpenAIBaseModel.model_config["extra"] == "allow"
    assert "report_fields(final_res)" in source(OpenAIServingChat.chat_completion_full_generator)
    assert "report_fields(res)" in source(OpenAIServingChat.chat_completion_stream_generator)
    assert "report_fields(" in source(OpenAIServingCompletion)
    assert "attach_report(response, context)" in source(OpenAIServingResponses)


def test_guard_trt_kv_cache_manager():
    from vllm.v1.core.kv_cache_coordinator import get_kv_cache_coordinator
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.sched.scheduler import Scheduler

    assert Scheduler.kv_cache_manager_cls is KVCacheManager
    assert KVCacheManager.coordinator_factory is get_kv_cache_coordinator
    text = source(Scheduler.__init__)
    assert text.index("= self.kv_cache_manager_cls") < text.index("= KVCacheManager(")
    text = source(KVCacheManager.__init__)
    assert text.index("= self.coordinator_factory") < text.index("= get_kv_cache_coordinator(")


def test_guard_trt_kv_cache_coordinator():
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator

    assert KVCacheCoordinator.block_pool_cls is BlockPool
    text = source(KVCacheCoordinator.__init__)
    assert text.index("BlockPool = self.block_pool_cls") < text.index("= BlockPool(")


def test_guard_trt_block_hashing():
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.engine.core import EngineCore

    assert not hasattr(KVCacheManager, "needs_block_hashes"), "off must keep the hasher"
    text = source(EngineCore.__init__)
    assert text.index("get_request_block_hasher(") < text.index('"needs_block_hashes", True')


def test_guard_preemption_victim():
    from vllm.v1.core.sched.scheduler import Scheduler

    victim = object()
    assert Scheduler.select_preemption_victim(None, victim) is victim, "off must change nothing"
    text = source(Scheduler.schedule)
    # The choice comes after both of upstream's, and before anything is done with it.
    assert text.index("= self.running[-1]") < text.index("self.select_preemption_victim(")
    assert text.index("self.select_preemption_victim(") < text.index("victim_index = ")


def test_guard_host_tier_order():
    # The store must come before the runner zeroes and copies blocks.
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    text = inspect.getsource(GPUModelRunner.update_requests)
    ours = text.index("before_block_writes(scheduler_output)")
    assert ours < text.index("zero_block_ids") < text.index("kv_cache_block_copies")


def test_the_scheduler_seams_we_override_are_still_there():
    from vllm.v1.core.sched.request_queue import RequestQueue
    from vllm.v1.core.sched.scheduler import Scheduler

    from vllm_helium.scheduler.plan_queue import PlanQueue

    assert set(RequestQueue.__abstractmethods__) <= set(vars(PlanQueue))
    text = source(Scheduler.__init__)
    assert "self.waiting = create_request_queue" in text
    assert "self.kv_holding_waiting = create_request_queue" in text
    text = source(Scheduler.schedule)
    assert "request_queue.peek_request()" in text
    assert "token_budget = self.max_num_scheduled_tokens" in text
