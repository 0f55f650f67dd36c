"""KVFlow's eviction: give up what the workflow needs last.

Written from the paper (arXiv 2507.07400), not from its code. What is kept: every agent has its
*steps to execution*, the number of steps of the workflow until it runs next; blocks of an agent's
fixed prompt are given up by falling steps, where a block shared by agents counts for the nearest of
them, and the varying rest of a prompt goes before any fixed part. Left out: prefetching from host
memory; a block that was given up is computed again, as without a host tier.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue, KVCacheBlock
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.request import Request

from helium.protocol import EnginePlan, PlanOperator, decode_engine_plan
from vllm_helium.request import read_context


class KvFlowScheduler(AsyncScheduler):
    """vLLM's scheduler with an eviction order that knows the workflow, first come, first served."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._workflows: dict[str, AgentSteps] = {}
        pool = self.kv_cache_manager.block_pool
        self._queue = FixedPromptsLast(pool.free_block_queue, self._steps)
        pool.free_block_queue = self._queue

    def helium_rpc(self, method: str, encoded: bytes) -> None:
        """Takes the workflow's plan before its calls come."""
        assert method == "register_plan", method
        plan = decode_engine_plan(encoded)
        self._workflows.setdefault(plan.digest(), AgentSteps(plan, self.block_size))

    def add_request(self, request: Request) -> None:
        super().add_request(request)
        context = read_context(request.sampling_params.extra_args)
        workflow = self._workflows.get(context.plan) if context else None
        if workflow is not None:
            workflow.arrive(context.operator, context.row)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        context = read_context(request.sampling_params.extra_args)
        workflow = self._workflows.get(context.plan) if context else None
        if workflow is not None:
            workflow.leave(context.operator)
            (block_ids,) = self.kv_cache_manager.get_block_ids(request.request_id)
            num_fixed = workflow.num_fixed_blocks(context.operator)
            self._queue.fix(block_ids[:num_fixed], (context.plan, context.operator))
        return super()._free_request(request, *args, **kwargs)

    def _steps(self, agents: Iterable[tuple[str, str]]) -> float:
        return min(self._workflows[plan].steps(operator) for plan, operator in agents)


class AgentSteps:
    """How far every agent of a workflow is from running, over all rows."""

    def __init__(self, plan: EnginePlan, block_size: int) -> None:
        self._operators = {operator.name: operator for operator in plan.operators}
        self._num_fixed_blocks = {
            operator.name: _num_fixed_tokens(plan, operator) // block_size
            for operator in plan.operators
        }
        self._depths: dict[str, int] = {}
        for operator in plan.operators:
            self._find_depth(operator)
        self._num_rows = max((operator.num_calls for operator in plan.operators), default=0)
        self._num_arrived: Counter[str] = Counter()
        self._num_present: Counter[str] = Counter()
        self._progress: dict[int, int] = {}
        self._rows_at: Counter[int] = Counter({0: self._num_rows})

    def arrive(self, operator: str, row: int) -> None:
        """A call of an agent is there."""
        if operator not in self._operators:
            return
        self._num_arrived[operator] += 1
        self._num_present[operator] += 1
        before, depth = self._progress.get(row, 0), self._depths[operator]
        if depth > before:
            self._progress[row] = depth
            self._rows_at[before] -= 1
            self._rows_at[depth] += 1

    def leave(self, operator: str) -> None:
        """A call of an agent has ended."""
        self._num_present[operator] -= 1

    def num_fixed_blocks(self, operator: str) -> int:
        """Returns the full blocks of the agent's fixed prompt."""
        return self._num_fixed_blocks.get(operator, 0)

    def steps(self, operator: str) -> float:
        """Returns the steps until the agent runs next: 0 if it does, infinity if never again."""
        if self._num_present[operator] > 0:
            return 0
        if self._num_arrived[operator] >= self._operators[operator].num_calls:
            return math.inf
        depth = self._depths[operator]
        nearest = max((d for d in range(depth) if self._rows_at[d] > 0), default=0)
        return depth - nearest

    def _find_depth(self, operator: PlanOperator) -> int:
        pending = [operator]
        while pending:  # not by recursion: chains may be long
            current = pending[-1]
            missing = [read for read in current.reads if read not in self._depths]
            if missing:
                pending += (self._operators[read] for read in missing)
                continue
            pending.pop()
            above = (self._depths[read] for read in current.reads)
            self._depths[current.name] = 1 + max(above, default=0)
        return self._depths[operator.name]


class FixedPromptsLast:
    """A free queue of blocks: the varying ones by recency, then fixed ones by falling steps.

    Args:
        queue: vLLM's own, which keeps the varying blocks.
        steps: Steps to the next execution of the nearest of some agents.
    """

    def __init__(
        self, queue: FreeKVCacheBlockQueue, steps: Callable[[Iterable[tuple[str, str]]], float]
    ) -> None:
        self._queue = queue
        self._steps = steps
        self._agents: dict[int, set[tuple[str, str]]] = {}
        self._fixed: dict[int, KVCacheBlock] = {}  # free ones, least recently freed first

    @property
    def num_free_blocks(self) -> int:
        return self._queue.num_free_blocks + len(self._fixed)

    def fix(self, block_ids: Iterable[int], agent: tuple[str, str]) -> None:
        """Marks blocks in use as part of an agent's fixed prompt."""
        for block_id in block_ids:
            self._agents.setdefault(block_id, set()).add(agent)

    def popleft(self) -> KVCacheBlock:
        return self.popleft_n(1)[0]

    def popleft_n(self, n: int) -> list[KVCacheBlock]:
        num_varying = min(n, self._queue.num_free_blocks)
        blocks = self._queue.popleft_n(num_varying) if num_varying else []
        if n > num_varying:
            # Stable: among equals the least recently freed first, and its tail before its head.
            order = sorted(self._fixed, key=lambda b: -self._steps(self._agents[b]))
            for block_id in order[: n - num_varying]:
                blocks.append(self._fixed.pop(block_id))
                del self._agents[block_id]
        return blocks

    def remove(self, block: KVCacheBlock) -> None:
        if self._fixed.pop(block.block_id, None) is None:
            self._queue.remove(block)

    def append(self, block: KVCacheBlock) -> None:
        self.append_n([block])

    def append_n(self, blocks: list[KVCacheBlock]) -> None:
        varying = []
        for block in blocks:
            if block.block_id in self._agents:
                self._fixed[block.block_id] = block
            else:
                varying.append(block)
        self._queue.append_n(varying)

    def prepend_n(self, blocks: list[KVCacheBlock]) -> None:
        """Takes blocks that cache nothing."""
        for block in blocks:
            self._agents.pop(block.block_id, None)
        self._queue.prepend_n(blocks)

    def get_all_free_blocks(self) -> list[KVCacheBlock]:
        return [*self._queue.get_all_free_blocks(), *self._fixed.values()]


def _num_fixed_tokens(plan: EnginePlan, operator: PlanOperator) -> int:
    count = 0
    for index in operator.template:
        node = plan.templates[index]
        if node.token_ids is None:
            break
        count += node.num_tokens
    return count
