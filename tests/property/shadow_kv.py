"""Shadow KV: the real scheduler and KV manager drive a worker whose KV slots hold fingerprints.

A slot's fingerprint stands for the whole token prefix it encodes, its adapter, its salt and the
weights' epoch. Every step writes the slots of its scheduled tokens and then checks every slot that
every scheduled request would read. There is no model, so thousands of steps run per second.
"""

from __future__ import annotations

import os
import random
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.lora.request import LoRARequest
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from helium.protocol import EnginePlan, PlanOperator, TemplateNode, WorkflowContext
from tests.property.shadow_worker import VOCAB, ShadowError, ShadowWorker
from vllm_helium.config import HeliumConfig
from vllm_helium.integration import kv_cache_manager
from vllm_helium.integration.engine_config import set_host_tier
from vllm_helium.request import write_context
from vllm_helium.scheduler.scheduler import HeliumAsyncScheduler, HeliumScheduler

STEP_S = 0.01


def build_engine_config(model: Path, *, is_async: bool, policy: str) -> Any:
    """Upstream's configuration for a scheduler without an engine."""
    return EngineArgs(
        model=str(model),
        dtype="float32",
        max_model_len=1024,
        block_size=16,
        max_num_seqs=12,
        max_num_batched_tokens=160,
        enable_prefix_caching=True,
        enforce_eager=True,
        skip_tokenizer_init=True,
        scheduling_policy=policy,
        # Several prompts are prefilled at once, so that one may be preempted in mid-prefill.
        long_prefill_token_threshold=24 if policy == "priority" else 0,
        async_scheduling=is_async,
        kv_cache_memory_bytes=1 << 26,
    ).create_engine_config()


def build_scheduler(
    config: Any, num_blocks: int, block_size: int, helium: HeliumConfig, is_async: bool
) -> Scheduler:
    """Our scheduler over our KV cache manager."""
    if not hasattr(Scheduler, "kv_cache_manager_cls"):
        raise ShadowError("vllm here is not the fork: its scheduler has no kv_cache_manager_cls")
    config.cache_config.num_gpu_blocks = num_blocks
    config.cache_config.block_size = block_size
    config.helium_config = helium
    config.kv_transfer_config = None
    set_host_tier(config)
    spec = FullAttentionSpec(
        block_size=block_size, num_kv_heads=1, head_size=32, dtype=torch.float32
    )
    cls = HeliumAsyncScheduler if is_async else HeliumScheduler
    return cls(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=num_blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer.0"], spec)],
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=block_size,
        hash_block_size=block_size,
        log_stats=True,
    )


@dataclass
class PlanOracle:
    """Pending calls of one run, counted the dumb way."""

    plan: EnginePlan
    run: str
    pending: set[tuple[str, int]] = field(default_factory=set)
    unsent: list[tuple[str, int]] = field(default_factory=list)


@dataclass(frozen=True)
class ShadowConfig:
    """One run of the oracle; equal values give equal runs."""

    num_blocks: int
    is_async: bool
    seed: int
    num_steps: int
    block_size: int = 16
    policy: str = "fcfs"
    use_v2_runner: bool = False
    min_partial_tokens: int = 4
    num_rows: int = 6
    order: str = "row"
    prefill_tokens: int = 40
    hold_tokens: int = 4
    num_slots: int = 0
    step_slots: int = 8


class ShadowRun:
    """Random traffic over a scheduler, checked at every step.

    Shared prefixes, two salts, two adapters, conversations that go on, sub-block copies, evictions,
    preemptions, aborts, leases, plan runs, and resets after a change of weights.
    """

    def __init__(self, engine_config: Any, config: ShadowConfig) -> None:
        self.config = config
        self.random = random.Random(config.seed)
        block_bytes = 2 * config.block_size * 32 * 4
        helium = HeliumConfig(
            min_partial_tokens=config.min_partial_tokens,
            order=config.order,
            prefill_tokens=config.prefill_tokens,
            hold_tokens=config.hold_tokens,
            # Host memory as a user gives it: by size.
            host_gib=config.num_slots * block_bytes / 2**30,
            host_step_mib=config.step_slots * block_bytes / 2**20,
            host_prefetch=True,
        )
        self.scheduler = build_scheduler(
            engine_config, config.num_blocks, config.block_size, helium, config.is_async
        )
        self.scheduler.use_v2_model_runner = config.use_v2_runner
        self.manager = self.scheduler.kv_cache_manager
        self.pool = self.manager.pool
        if self.pool is None:
            raise ShadowError("the tree is not in use")
        self.now = 0.0
        self.manager.clock = lambda: self.now
        self.worker = ShadowWorker(config.num_blocks, config.block_size, config.num_slots)
        self.in_flight: deque[tuple[Any, ModelRunnerOutput]] = deque()
        self.texts = [self._random_text(20, 150) for _ in range(4)]
        self.num_requests = self.num_preempted = self.num_cached_tokens = self.num_steps = 0
        self.num_leases = self.num_resets = self.num_aborts = self.num_short_cuts = 0
        self._allocate = self.manager.allocate_slots
        self.manager.allocate_slots = self._allocate_checked
        self.contexts: dict[str, WorkflowContext] = {}
        self.runs: dict[str, PlanOracle] = {}
        self.num_runs = 0
        self.system_prompt = tuple(self._random_text(30, 60))
        self.plan = self._make_plan()
        self.scheduler.helium_rpc("register_plan", self.plan.to_json())
        self.adapters = [LoRARequest(f"adapter-{i}", i, f"/adapters/{i}") for i in (1, 2)]

    def _random_text(self, low: int, high: int) -> list[int]:
        return [self.random.randrange(VOCAB) for _ in range(self.random.randrange(low, high))]

    def _make_plan(self) -> EnginePlan:
        rows = self.config.num_rows
        return EnginePlan(
            version=1,
            workflow="shadow",
            operators=(
                PlanOperator(name="expert", rank=1, num_calls=rows, template=(1, 2)),
                PlanOperator(
                    name="critic", rank=2, num_calls=rows, template=(1, 2, 3), reads=("expert",)
                ),
                PlanOperator(
                    name="judge",
                    rank=3,
                    num_calls=rows,
                    template=(1, 4),
                    reads=("expert", "critic"),
                ),
            ),
            templates=(
                TemplateNode(parent=0),
                TemplateNode(
                    parent=0, num_tokens=len(self.system_prompt), token_ids=self.system_prompt
                ),
                TemplateNode(parent=1, num_tokens=40),
                TemplateNode(parent=2, num_tokens=20),
                TemplateNode(parent=1, num_tokens=30),
            ),
        )

    # --- traffic ---------------------------------------------------------------------------------

    def _add_request(self) -> None:
        request_id = f"r{self.num_requests}"
        self.num_requests += 1
        context = tokens = None
        if self.random.random() < 0.4:
            context, tokens = self._planned_call()
        salt = adapter = None
        if tokens is None:
            base = self.random.choice(self.texts)
            cut = self.random.randrange(len(base) + 1) if self.random.random() < 0.6 else len(base)
            tokens = (base[:cut] + self._random_text(1, 40))[:400]
            salt = self.random.choice([None, None, None, "tenant"])
            adapter = self.random.choice([None, None, None, *self.adapters])
        params = SamplingParams(
            max_tokens=self.random.choice([1, 2, 5, 17, 60]),
            ignore_eos=True,
            temperature=0.0,
            skip_reading_prefix_cache=True if self.random.random() < 0.03 else None,
        )
        params.extra_args = {}
        write_context(params.extra_args, context)
        request = Request(
            request_id,
            tokens,
            params,
            None,
            cache_salt=salt,
            lora_request=adapter,
            priority=self.random.randrange(3),
        )
        self.worker.seeds[request_id] = hash((salt, adapter.lora_path if adapter else None))
        if context is not None:
            self.contexts[request_id] = context
        self.scheduler.add_request(request)

    def _planned_call(self) -> tuple[WorkflowContext | None, list[int] | None]:
        runs = [run for run in self.runs.values() if run.unsent]
        if len(runs) < 2:
            name = f"run-{self.num_runs}"
            self.num_runs += 1
            calls = [
                (operator.name, row)
                for operator in self.plan.operators
                for row in range(self.config.num_rows)
            ]
            self.random.shuffle(calls)
            runs.append(PlanOracle(self.plan, name, set(calls), calls))
            self.runs[name] = runs[-1]
        run = self.random.choice(runs)
        name, row = run.unsent.pop()
        rows = random.Random(f"{run.run}/{row}")
        context_text = [rows.randrange(VOCAB) for _ in range(rows.randrange(10, 50))]
        own = self._random_text(5, 30)
        segments = {
            "expert": [list(self.system_prompt), context_text],
            "critic": [list(self.system_prompt), context_text, own],
            "judge": [list(self.system_prompt), own],
        }[name]
        context = WorkflowContext(
            plan=self.plan.digest(),
            run=run.run,
            operator=name,
            row=row,
            segment_lengths=tuple(len(segment) for segment in segments),
        )
        return context, [token for segment in segments for token in segment]

    def _disturb(self) -> None:
        chance = self.random.random()
        requests = self.scheduler.requests
        if chance < 0.015 and requests:
            request_id = self.random.choice(list(requests))
            self.num_aborts += 1
            self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
            self._call_ended(request_id)
        elif chance < 0.03 and requests:
            request = requests[self.random.choice(list(requests))]
            seconds = self.random.choice([0.05, 0.5, 5.0])
            self.num_leases += self.manager.lease_prefix(request, request.num_tokens, seconds)
        elif chance < 0.0315:
            self.num_resets += 1
            if not self.scheduler.reset_prefix_cache(reset_running_requests=True):
                raise ShadowError("the prefix cache could not be reset")
            self.worker.change_weights()

    def _call_ended(self, request_id: str) -> None:
        context = self.contexts.pop(request_id, None)
        if context is not None:
            run = self.runs[context.run]
            run.pending.discard((context.operator, context.row))
            if not run.pending:
                del self.runs[context.run]

    # --- steps -----------------------------------------------------------------------------------

    def run(self) -> ShadowRun:
        """Runs all steps, drains, and proves that nothing leaked.

        Raises:
            ShadowError: Something is wrong; the message says what and where.
        """
        while self.num_steps < self.config.num_steps:
            while len(self.scheduler.requests) < 20 and self.random.random() < 0.5:
                self._add_request()
            self._disturb()
            self._step()
            if self.num_steps % 200 == 0:
                self.check()
        while self.scheduler.has_unfinished_requests() or self.in_flight:
            self._step()
        self._step()
        self.check()
        self.check_drained()
        return self

    def _step(self) -> None:
        scheduler = self.scheduler
        self.now += STEP_S
        if scheduler.has_requests():
            output = scheduler.schedule()
            self.num_steps += 1
            self.num_preempted += len(output.preempted_req_ids or ())
            self.in_flight.append((output, self.worker.step(output)))
        else:
            self.num_steps += 1
        depth = 2 if self.config.is_async and scheduler.has_unfinished_requests() else 1
        while len(self.in_flight) >= depth:
            self._finish_step(*self.in_flight.popleft())

    def _finish_step(self, output: Any, result: ModelRunnerOutput) -> None:
        for outputs in self.scheduler.update_from_output(output, result).values():
            for one in outputs.outputs:
                if one.prefill_stats is not None:
                    self.num_cached_tokens += one.prefill_stats.num_cached_tokens
                if one.finish_reason is not None:
                    self._call_ended(one.request_id)
                    tokens = self.worker.tokens.get(one.request_id)
                    if tokens:
                        self.texts = [*self.texts[:4], *self.texts[4:][-6:], list(tokens[:300])]

    # --- checks ----------------------------------------------------------------------------------

    def _allocate_checked(self, request: Request, num_new_tokens: int, **kwargs: Any) -> Any:
        """Where our manager says that nothing is to be done, upstream's must find the same."""
        manager = self.manager
        [group] = manager.coordinator.single_type_managers
        if self.num_steps % 8 == 0 and kv_cache_manager.needs_no_block(
            group, request, num_new_tokens, (), kwargs
        ):
            self.num_short_cuts += 1
            before = self._slots_of(request)
            blocks = KVCacheManager.allocate_slots(manager, request, num_new_tokens, **kwargs)
            if blocks is not manager.empty_kv_cache_blocks or self._slots_of(request) != before:
                raise ShadowError(f"short cut: upstream allocates {blocks} for {num_new_tokens}")
        return self._allocate(request, num_new_tokens, **kwargs)

    def _slots_of(self, request: Request) -> tuple[Any, ...]:
        [group] = self.manager.coordinator.single_type_managers
        blocks = [block.block_id for block in group.req_to_blocks[request.request_id]]
        num_indexed = group.num_cached_block[request.request_id]
        return blocks, num_indexed, self.pool.index.num_free, self.pool.index.stats()

    def check(self) -> None:
        """Integrity of the index, reference counts, and pending uses against the dumb count."""
        self.pool.index.check_integrity()
        for block in self.pool.blocks:
            is_held = self.pool.index.place(block.block_id) == "held"
            if is_held != (block.ref_cnt > 0 or block.is_null):
                raise ShadowError(
                    f"block {block.block_id} has {block.ref_cnt} references, {is_held=}"
                )
        digest = self.plan.digest()
        for run in self.runs.values():
            uses = self.pool.plans._runs.get((digest, run.run))
            if uses is not None:
                self._check_uses(uses, run)

    def _check_uses(self, uses: Any, run: PlanOracle) -> None:
        ranks = {operator.name: operator.rank for operator in self.plan.operators}
        readers = {
            node: {o.name for o in self.plan.operators if node in o.template}
            for node in range(1, 5)
        }
        for node, names in readers.items():
            rows = [None] if node == 1 else range(self.config.num_rows)
            for row in rows:
                if row is not None and (node, row) not in uses._row_readers:
                    continue
                pending = [
                    (name, at) for name, at in run.pending if name in names and row in (None, at)
                ]
                next_use = min((ranks[name] for name, _ in pending), default=0)
                found = self.pool.index.uses(uses.tag_of(node, row or 0))
                if found != (len(pending), next_use):
                    raise ShadowError(
                        f"{run.run}: node {node}, row {row}: the index expects (uses, next use) "
                        f"{found}, pending are {(len(pending), next_use)}"
                    )

    def check_drained(self) -> None:
        """Nothing runs: every block must be free, no slot locked and every ended run closed."""
        self.manager.new_step_starts()
        host = self.pool.index.stats().get("host")
        if host is not None and host["slots"]["held"]:
            raise ShadowError(f"{host['slots']['held']} slots are locked for ever")
        if self.pool.get_num_free_blocks() != self.config.num_blocks - 1:
            raise ShadowError(
                f"{self.config.num_blocks - 1 - self.pool.get_num_free_blocks()} blocks leaked"
            )
        if any(block.ref_cnt for block in self.pool.blocks if not block.is_null):
            raise ShadowError("a free block has references")
        open_runs = self.pool.plans.describe()["num_runs"]
        num_calls = len(self.plan.operators) * self.config.num_rows
        pending = sum(len(run.unsent) < num_calls for run in self.runs.values())
        if open_runs != pending:
            raise ShadowError(f"{open_runs} runs are open, {pending} begun ones have pending calls")

    def describe(self) -> str:
        return (
            f"steps={self.num_steps} requests={self.num_requests} preempted={self.num_preempted} "
            f"copies={self.worker.num_copies} cached={self.num_cached_tokens} "
            f"aborts={self.num_aborts} leases={self.num_leases} resets={self.num_resets} "
            f"runs={self.num_runs} slots={self.worker.num_slots_checked} "
            f"stored={self.worker.num_stores} loaded={self.worker.num_loads} "
            f"prefetched={self.worker.num_prefetches}"
        )
