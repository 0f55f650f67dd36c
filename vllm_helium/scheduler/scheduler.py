"""The workflow-aware scheduler: upstream's, with order, pace and victims that know the plan.

``HeliumMixin`` holds everything of ours; it is combined with upstream's two schedulers, because the
synchronous one under asynchronous scheduling would lose the overlap with the forward pass.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from helium.errors import PlanError
from helium.protocol import PlanOperator, WorkflowContext, decode_engine_plan
from vllm_helium.config import HeliumConfig
from vllm_helium.integration.engine_process import end_with_front_end
from vllm_helium.integration.kv_cache_manager import kv_cache_manager_factory
from vllm_helium.integration.kv_cache_manager_path import is_prewarm
from vllm_helium.prefix_cache.options import PrefixCacheOptions
from vllm_helium.request import read_context
from vllm_helium.scheduler.pacing import step_budget
from vllm_helium.scheduler.plan_queue import ORDINARY, PLANS, Place, PlanQueue
from vllm_helium.scheduler.plan_registry import PlanRegistry
from vllm_helium.scheduler.prewarm import Prewarmer
from vllm_helium.scheduler.sibling_holds import SiblingHolds
from vllm_helium.scheduler.victims import select_victim

logger = init_logger(__name__)


class HeliumMixin:
    """What Helium adds to upstream's scheduler.

    Every request gets two attributes when it is added: ``request.helium``, its
    ``WorkflowContext`` or ``None`` for ordinary traffic, and ``request.helium_place``, its place
    among the others. A planned one also gets ``request.helium_operator``, the names of its workflow
    and operator.
    """

    def __init__(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        end_with_front_end()
        config = vllm_config.helium_config or HeliumConfig()
        self.kv_cache_manager_cls = kv_cache_manager_factory(
            vllm_config, prefix_cache_options(config)
        )
        super().__init__(vllm_config, *args, **kwargs)
        self.helium_config: HeliumConfig = config
        self.plans = PlanRegistry(config.max_plans, config.max_plan_mib << 20, self._plan_is_gone)
        self.prewarmer = Prewarmer(self, config, vllm_config)
        can_hold = getattr(self.kv_cache_manager, "has_tree", False)
        self.holds = SiblingHolds(
            config.hold_tokens if can_hold else 0,
            self.kv_cache_manager.pending_tokens if can_hold else lambda _: 0,
        )
        self.num_planned_requests = 0
        self.num_unplanned_contexts = 0
        self.num_paced_steps = 0
        self._weights = ""
        self._num_planned_alive = 0
        # Without chunks a prompt above the budget would wait until nothing decodes; what has to be
        # scheduled in one piece (an image, a state of a Mamba layer) likewise.
        self._can_pace = (
            self.scheduler_config.enable_chunked_prefill
            and not self.need_mamba_block_aligned_split
            and not self.max_num_encoder_input_tokens
        )
        self._plan_queues: tuple[PlanQueue, ...] = ()
        if self.policy == SchedulingPolicy.PRIORITY:
            logger.info("Helium: scheduling policy 'priority' is set, so plan order is off.")
        elif config.order != "fcfs":
            self.waiting = PlanQueue(config.aging_s, place_of)
            self.kv_holding_waiting = PlanQueue(config.aging_s, place_of)
            self._plan_queues = (self.waiting, self.kv_holding_waiting)
            if config.victims == "plan":
                # Upstream's branch for this policy can take any running request as the victim.
                self.policy = SchedulingPolicy.PRIORITY

    def add_request(self, request: Request) -> None:
        self._place(request)
        if request.helium is not None and request.request_id not in self.requests:
            self._num_planned_alive += 1
        super().add_request(request)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        # What never went through ``add_request`` was never counted or charged.
        if getattr(request, "helium", None) is not None:
            self._num_planned_alive -= 1
        if self._plan_queues and request.num_output_tokens and hasattr(request, "helium_place"):
            # What it took in fact, against what its run was charged at admission.
            num_tokens = request.num_tokens - place_of(request).num_tokens
            self.waiting.charge(request, num_tokens)
        return super()._free_request(request, *args, **kwargs)

    def _place(self, request: Request) -> None:
        """Reads the request's context and looks it up; a hint that fails is only reported."""
        params = request.sampling_params
        request.helium = None
        request.helium_place = Place(ORDINARY, ORDINARY, (0, 0, 0), request.num_prompt_tokens)
        if is_prewarm(request):
            return
        context = read_context(params.extra_args) if params is not None else None
        if context is None:
            return
        operator = self.plans.resolve(context)
        if operator is None:
            self.num_unplanned_contexts += 1
        else:
            self.num_planned_requests += 1
            request.helium = self.plans.cut(context, request.prompt_token_ids or ())
            request.helium_place = self._planned_place(request, context, operator)
            plan = self.plans.plan(context.plan)
            request.helium_operator = (plan.workflow, operator.name)
            if request.lora_request is not None:
                self.prewarmer.adapter_used(context.plan, plan, request)
        if request.prefill_stats is not None:
            request.prefill_stats.helium = self._report(context, operator is not None)

    def _planned_place(
        self, request: Request, context: WorkflowContext, operator: PlanOperator
    ) -> Place:
        config = self.helium_config
        rank = operator.rank if context.rank is None else context.rank
        position = (rank, context.row, 0)
        if config.order == "row":
            lead = config.stage_rows * self.plans.stages_to_go(context)
            position = (context.row - lead, context.row, rank)
        return Place(
            run=(request.cache_salt, context.plan, context.run) if config.fair_share else PLANS,
            tenant=("tenant", request.cache_salt) if config.fair_share else PLANS,
            position=position,
            # An estimate is a client's word: beyond all bounds, virtual times would all be equal.
            num_tokens=request.num_prompt_tokens + min(operator.output_tokens, self.max_model_len),
        )

    def _report(self, context: WorkflowContext, is_planned: bool) -> dict[str, Any]:
        report: dict[str, Any] = {"plan": context.plan, "run": context.run, "planned": is_planned}
        if not is_planned:
            missing = (
                f"operator {context.operator!r} is not in the plan"
                if context.plan in self.plans
                else "the plan is not registered with this engine"
            )
            report["note"] = f"{missing}; the request ran as ordinary traffic"
        return report

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        if self._plan_queues:
            now = time.time()
            for queue in self._plan_queues:
                queue.now = now
        self.holds.step_starts()
        max_tokens = self.max_num_scheduled_tokens
        self.max_num_scheduled_tokens = self._step_budget()
        try:
            return super().schedule(*args, **kwargs)
        finally:
            self.max_num_scheduled_tokens = max_tokens

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        is_ready: bool = super()._handle_blocked_waiting_request(request)
        return is_ready and not self.holds.is_held(request)

    def select_preemption_victim(self, victim: Request) -> Request:
        """Hook ``preemption-victim``: may choose another running request than upstream did."""
        if self._plan_queues and self.helium_config.victims == "plan":
            return select_victim(self.running, place_of)
        return victim

    def _step_budget(self) -> int:
        """The step's token budget: paced while planned requests are there, else upstream's."""
        max_tokens: int = self.max_num_scheduled_tokens
        if not (self._can_pace and self._num_planned_alive):
            return max_tokens
        budget = step_budget(
            max_tokens,
            len(self.running) - len(self._inflight_prefills),
            1 + self.num_spec_tokens,
            self.helium_config.prefill_tokens,
        )
        self.num_paced_steps += budget < max_tokens
        return budget

    def weights_may_change(self) -> None:
        """Hook ``weights-revision``: what comes from now on is of another revision."""
        self._weights = uuid.uuid4().hex

    def _weights_revision(self) -> str:
        """Names the weights among those since the engine started, which are empty."""
        return self._weights

    def helium_rpc(self, method: str, *args: Any) -> Any:
        """Serves a call from a front end; runs between two steps.

        Raises:
            PlanError: The method or its arguments are not valid; the caller gets the message.
        """
        handler = _RPC.get(method)
        if handler is None:
            raise PlanError(f"helium_rpc: unknown method {method!r}; known: {', '.join(_RPC)}")
        return handler(self, *args)

    def _register_plan(self, encoded: bytes) -> dict[str, Any]:
        plan = decode_engine_plan(encoded)
        digest = self.plans.register(plan)
        self.kv_cache_manager.register_plan(digest, plan)
        self.prewarmer.plan_registered(digest, plan)
        return {
            "digest": digest,
            "object": "helium.plan",
            "workflow": plan.workflow,
            "num_operators": len(plan.operators),
        }

    def _plan_is_gone(self, digest: str) -> None:
        self.prewarmer.plan_dropped(digest)
        self.kv_cache_manager.drop_plan(digest)

    def _drop_plan(self, digest: str) -> bool:
        return self.plans.drop(digest)

    def _finish_run(self, digest: str, run: str) -> None:
        self.kv_cache_manager.finish_run(digest, run)

    def _list_plans(self) -> list[dict[str, object]]:
        return self.plans.describe()

    def _status(self) -> dict[str, Any]:
        num_running, num_waiting = self.get_request_counts()
        return {
            "scheduler": type(self).__name__,
            "config": {
                name: getattr(self.helium_config, name)
                for name in HeliumConfig.__dataclass_fields__
            },
            "plan_order": bool(self._plan_queues),
            "num_plans": len(self.plans),
            "num_plan_bytes": self.plans.num_bytes,
            "num_running": num_running,
            "num_waiting": num_waiting,
            "num_paced_steps": self.num_paced_steps,
            "num_planned_requests": self.num_planned_requests,
            "num_unplanned_contexts": self.num_unplanned_contexts,
            "sibling_holds": self.holds.describe(),
            "prewarm": self.prewarmer.describe(),
            "prefix_cache": self.kv_cache_manager.describe(),
        }

    def _metrics(self) -> dict[str, Any]:
        manager = self.kv_cache_manager
        return {
            "prefix_cache": manager.describe(),
            "operators": manager.misses.describe_operators(),
        }


_RPC = {
    "register_plan": HeliumMixin._register_plan,
    "drop_plan": HeliumMixin._drop_plan,
    "finish_run": HeliumMixin._finish_run,
    "list_plans": HeliumMixin._list_plans,
    "status": HeliumMixin._status,
    "metrics": HeliumMixin._metrics,
    "weights_revision": HeliumMixin._weights_revision,
}


def prefix_cache_options(config: HeliumConfig) -> PrefixCacheOptions | None:
    """Returns the tree's options, or ``None`` for upstream's index."""
    if config.prefix_index == "stock":
        return None
    return PrefixCacheOptions(
        min_partial_tokens=config.min_partial_tokens,
        prompt_tails=config.prompt_tails,
        lease_share=config.lease_share,
        ordinary_share=config.ordinary_share,
        max_runs=config.max_runs,
    )


def place_of(request: Request) -> Place:
    """Where a request belongs, as ``HeliumMixin`` found when it was added."""
    place: Place = request.helium_place
    return place


class HeliumScheduler(HeliumMixin, Scheduler):
    """Synchronous scheduling (the CPU engine)."""


class HeliumAsyncScheduler(HeliumMixin, AsyncScheduler):
    """Asynchronous scheduling (the CUDA engine's default)."""
