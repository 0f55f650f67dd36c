"""An engine with far more work than fits: tenants, runs, ordinary traffic, leases, aborts.

Everything is checked as it happens, in virtual time, so that equal seeds give equal runs:

* the engine never stands still while calls wait, and every call ends;
* no ordinary request is overtaken by one that arrived after it;
* while a tenant has calls waiting, no other tenant is served more than it, but for a few calls;
* nothing is preempted for blocks that are free or merely leased;
* no block leaks, and the index stays sound.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from vllm import SamplingParams
from vllm.v1.request import Request

from helium.protocol import EnginePlan, PlanOperator, TemplateNode, WorkflowContext
from tests.unit.scheduler.bench import Bench
from vllm_helium.scheduler.plan_queue import ORDINARY

TENANTS = ("a", "b", "c")
RUNS_PER_TENANT = 2
ROWS = 12
NUM_BLOCKS = 160
MAX_CALL_TOKENS = 190 + 100


class SoakError(AssertionError):
    """A promise of the scheduler was broken; the message says which."""


class Soak:
    """Keeps about ten times as many calls in the engine as its KV cache holds."""

    def __init__(self, seed: int, *, is_async: bool, helium: dict[str, Any] | None = None) -> None:
        self.random = random.Random(seed)
        self.bench = Bench(
            {"aging_s": 1e6, "prefill_tokens": 64, **(helium or {})},
            num_blocks=NUM_BLOCKS,
            async_scheduling=is_async,
            max_num_seqs=64,
            max_num_batched_tokens=256,
        )
        self.scheduler = self.bench.scheduler
        self.pool = self.scheduler.kv_cache_manager.pool
        self.head = [self.random.randrange(1, 1 << 20) for _ in range(48)]
        self.plan = self._make_plan()
        self.digest = self.bench.register(self.plan)
        self.calls: dict[str, list[tuple[str, int]]] = {}
        self.num_idle = self.num_runs = self.num_added = self.num_aborted = self.num_leases = 0
        self.num_preempted = 0
        self.alive: dict[str, Request] = {}
        self.arrivals: dict[str, int] = {}
        self.served: Counter[Any] = Counter()
        self.served_at_arrival: dict[str, Counter[Any]] = {}
        self.ordinary: list[str] = []
        self._watch_admissions()
        self._watch_preemptions()

    def _make_plan(self) -> EnginePlan:
        return EnginePlan(
            1,
            "soak",
            (
                PlanOperator("ask", 0, ROWS, 30.0, (1, 2)),
                PlanOperator("check", 1, ROWS, 30.0, (1, 2, 3), ("ask",)),
            ),
            (
                TemplateNode(0),
                TemplateNode(0, len(self.head), tuple(self.head), 2 * ROWS),
                TemplateNode(1, 40),
                TemplateNode(2, 40),
            ),
        )

    # --- traffic ---------------------------------------------------------------------------------

    def _text(self, low: int, high: int) -> list[int]:
        return [self.random.randrange(1, 1 << 20) for _ in range(self.random.randrange(low, high))]

    def _run_of(self, tenant: str) -> str:
        runs = [run for run in self.calls if run.startswith(tenant)]
        if len(runs) < RUNS_PER_TENANT:
            self.num_runs += 1
            runs.append(f"{tenant}/{self.num_runs}")
            self.calls[runs[-1]] = [(name, row) for row in range(ROWS) for name in ("check", "ask")]
        return self.random.choice(runs)

    def _add_planned(self, tenant: str) -> None:
        run = self._run_of(tenant)
        operator, row = self.calls[run].pop(self.random.randrange(len(self.calls[run])))
        if not self.calls[run]:
            del self.calls[run]
        rows = random.Random(f"{run}:{row}")
        prompt = [*self.head, *(rows.randrange(1, 1 << 20) for _ in range(40))]
        if operator == "check":
            prompt += self._text(5, 90)
        context = WorkflowContext(self.digest, run, operator, row=row)
        self._add(prompt, context, tenant)

    def _add(self, prompt: list[int], context: WorkflowContext | None, tenant: str | None) -> None:
        name = f"r{self.num_added}"
        self.num_added += 1
        self.bench.add(name, prompt, self.random.choice([1, 5, 30, 60, 100]), context, tenant)
        self.alive[name] = self.scheduler.requests[name]
        self.arrivals[name] = self.num_added
        self.served_at_arrival[name] = Counter(self.served)
        if context is None:
            self.ordinary.append(name)

    def _disturb(self) -> None:
        chance = self.random.random()
        if chance < 0.05 and self.alive:
            name = self.random.choice(list(self.alive))
            self.num_aborted += 1
            self.bench.engine.abort(name)
            self._ended(name)
        elif chance < 0.3:
            prompt = [*self.head, *self._text(1, 20)]
            probe = Request("probe", prompt, SamplingParams(max_tokens=1), None)
            probe.helium = None
            manager = self.scheduler.kv_cache_manager
            self.num_leases += manager.lease_prefix(probe, len(self.head), 1e6)
            for request in self.random.sample(list(self.alive.values()), min(4, len(self.alive))):
                self.num_leases += manager.lease_prefix(request, request.num_tokens, 1e6)

    def _ended(self, name: str) -> None:
        self.alive.pop(name, None)
        self.arrivals.pop(name, None)
        self.served_at_arrival.pop(name, None)

    # --- checks ----------------------------------------------------------------------------------

    def _watch_admissions(self) -> None:
        queue = self.scheduler.waiting
        pop = queue.pop_request

        def pop_and_check() -> Request:
            request = pop()
            self._admitted(request)
            return request

        queue.pop_request = pop_and_check

    def _admitted(self, request: Request) -> None:
        if request.num_preemptions:
            return
        place = request.helium_place
        arrival = self.arrivals[request.request_id]
        self.ordinary = [name for name in self.ordinary if name in self.alive]
        for name in self.ordinary:
            waits = (
                self.alive[name].num_computed_tokens == 0 and not self.alive[name].num_preemptions
            )
            if waits and self.arrivals[name] < arrival and name in self.scheduler.waiting._entries:
                raise SoakError(f"{request.request_id} overtook the ordinary request {name}")
        if place.run == ORDINARY:
            return  # has what its arrival gives it
        self.served[place.tenant] += place.num_tokens
        before = self.served_at_arrival[request.request_id]
        own = self.served[place.tenant] - before[place.tenant]
        slack = 4 * (RUNS_PER_TENANT + 1) * MAX_CALL_TOKENS
        for tenant, tokens in self.served.items():
            if tenant != place.tenant and tokens - before[tenant] > own + slack:
                raise SoakError(
                    f"{request.request_id} of {place.tenant} waited while {tenant} was served "
                    f"{tokens - before[tenant]:.0f} tokens and its own tenant {own:.0f}"
                )

    def _watch_preemptions(self) -> None:
        manager = self.scheduler.kv_cache_manager
        allocate, preempt = manager.allocate_slots, self.scheduler._preempt_request
        refused: tuple[Request, int] | None = None

        def allocate_and_note(
            request: Request, num_new_tokens: int, *rest: Any, **more: Any
        ) -> Any:
            nonlocal refused
            blocks = allocate(request, num_new_tokens, *rest, **more)
            if blocks is None:
                refused = request, num_new_tokens
            return blocks

        def preempt_and_check(*rest: Any, **more: Any) -> Any:
            if refused is None:
                raise SoakError("a call was preempted though nobody lacked blocks")
            self._preempted(*refused)
            return preempt(*rest, **more)

        manager.allocate_slots = allocate_and_note
        self.scheduler._preempt_request = preempt_and_check

    def _preempted(self, request: Request, num_new_tokens: int) -> None:
        """Something is preempted for ``request``: leases must have been given up by then."""
        group = self.scheduler.kv_cache_manager.coordinator.single_type_managers[0]
        num_held = len(group.req_to_blocks.get(request.request_id, ()))
        num_tokens = request.num_computed_tokens + num_new_tokens
        num_needed = -(-num_tokens // self.pool.hash_block_size) - num_held
        # A lease holds no reference, so that leased blocks are among these.
        num_free = sum(block.ref_cnt == 0 and not block.is_null for block in self.pool.blocks)
        if num_needed <= num_free:
            raise SoakError(
                f"preempted for {request.request_id}, which needs {num_needed} blocks, while "
                f"{num_free} are free or merely leased"
            )
        self.num_preempted += 1

    def check(self) -> None:
        """Raises if the index is not sound or a block is counted wrong."""
        self.pool.index.check_integrity()
        for block in self.pool.blocks:
            is_held = self.pool.index.place(block.block_id) == "held"
            if is_held != (block.ref_cnt > 0 or block.is_null):
                raise SoakError(f"block {block.block_id}: {block.ref_cnt} references, {is_held=}")

    # --- run -------------------------------------------------------------------------------------

    def step(self) -> None:
        """One step under full load."""
        # About 14 of these calls fill the cache; keep ten times as many.
        while len(self.alive) < 140:
            if self.random.random() < 0.2:
                self._add(self._text(20, 190), None, None)
            else:
                self._add_planned(self.random.choice(TENANTS))
        self._disturb()
        self._advance()

    def _advance(self) -> None:
        # A step without tokens may only report what has finished; several in a row: standstill.
        self.num_idle = 0 if self.bench.step() else self.num_idle + 1
        if self.num_idle > 3 and self.scheduler.has_unfinished_requests():
            raise SoakError(f"nothing runs while {len(self.alive)} calls wait")
        for name in [name for name in self.bench.ended if name in self.alive]:
            self._ended(name)
        self.bench.ended.clear()
        self.bench.steps.clear()

    def drain(self) -> None:
        """Lets everything end; nothing may be left."""
        for _ in range(1_000_000):
            if not self.alive:
                break
            self._advance()
        self.bench.finish()
        self.check()
        if self.alive or self.scheduler.requests:
            raise SoakError(f"{len(self.alive)} calls never ended")
        leaked = NUM_BLOCKS - 1 - self.pool.get_num_free_blocks()
        if leaked:
            raise SoakError(f"{leaked} blocks leaked")
        status = self.scheduler._status()
        if len(self.scheduler.waiting) or self.scheduler._num_planned_alive:
            raise SoakError(f"the scheduler still counts calls: {status}")
