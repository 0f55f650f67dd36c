"""Overloads a real engine for a while, in a process of its own, and writes what came of it.

    python soak_process.py MODEL SECONDS RESULT

Ten times more calls than fit: runs of two tenants, ordinary traffic, leases on everything, aborts.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

NUM_BLOCKS = 40
NUM_ALIVE = 100
ROWS = 8


def make_plan(head: list[int]) -> Any:
    from helium.protocol import EnginePlan, PlanOperator, TemplateNode

    operators = (
        PlanOperator("ask", 0, ROWS, 16.0, (1, 2)),
        PlanOperator("check", 1, ROWS, 16.0, (1, 2, 3), ("ask",)),
    )
    nodes = (
        TemplateNode(0),
        TemplateNode(0, len(head), tuple(head), 2 * ROWS),
        TemplateNode(1, 40),
        TemplateNode(2, 20),
    )
    return EnginePlan(1, "soak", operators, nodes)


class EngineSoak:
    def __init__(self, model: str) -> None:
        from vllm import LLM

        self.llm = LLM(
            model=model,
            helium={"prefill_tokens": 64},
            block_size=32,
            dtype="float32",
            enforce_eager=True,
            kv_cache_memory_bytes=64 << 20,
            num_gpu_blocks_override=NUM_BLOCKS,
            max_model_len=512,
            max_num_seqs=32,
            max_num_batched_tokens=256,
        )
        self.engine = self.llm.llm_engine
        self.scheduler = self.engine.engine_core.engine_core.scheduler
        self.random = random.Random(1)
        self.head = self._text(50, 51)
        plan = make_plan(self.head)
        self.digest = self.scheduler.helium_rpc("register_plan", plan.to_json())["digest"]
        self.alive: dict[str, tuple[list[int], int]] = {}
        self.ended: dict[str, tuple[list[int], list[int]]] = {}
        self.num_added = self.num_aborted = self.num_leases = self.num_preempted = 0
        self.num_wrong_lengths = 0
        self.longest_wait_s = 0.0
        self.added_at: dict[str, float] = {}
        preempt = self.scheduler._preempt_request

        def preempt_and_count(*args: Any, **kwargs: Any) -> None:
            self.num_preempted += 1
            preempt(*args, **kwargs)

        self.scheduler._preempt_request = preempt_and_count

    def _text(self, low: int, high: int) -> list[int]:
        return [self.random.randrange(32, 127) for _ in range(self.random.randrange(low, high))]

    def add(self) -> None:
        from vllm import SamplingParams

        from helium.protocol import WorkflowContext
        from vllm_helium.request import write_context

        name = f"r{self.num_added}"
        self.num_added += 1
        params = SamplingParams(
            temperature=0.0, max_tokens=self.random.choice([1, 8, 16, 60]), ignore_eos=True
        )
        prompt: dict[str, Any] = {"prompt_token_ids": self._text(20, 150)}
        if self.random.random() < 0.8:
            tenant = self.random.choice("ab")
            run = f"{tenant}{self.num_added // 400}/{self.random.randrange(2)}"
            row, operator = self.random.randrange(ROWS), self.random.choice(["ask", "check"])
            rows = random.Random(f"{run}:{row}")
            tokens = [*self.head, *(rows.randrange(32, 127) for _ in range(40))]
            tokens += self._text(5, 60) if operator == "check" else []
            prompt = {"prompt_token_ids": tokens, "cache_salt": tenant}
            params.extra_args = {}
            context = WorkflowContext(self.digest, run, operator, row=row)
            write_context(params.extra_args, context)
        self.alive[name] = prompt["prompt_token_ids"], params.max_tokens
        self.added_at[name] = time.monotonic()
        self.engine.add_request(name, prompt, params)

    def step(self) -> None:
        for output in self.engine.step():
            if not output.finished or output.request_id not in self.alive:
                continue
            prompt, num_tokens = self.alive.pop(output.request_id)
            wait_s = time.monotonic() - self.added_at.pop(output.request_id)
            self.longest_wait_s = max(self.longest_wait_s, wait_s)
            tokens = list(output.outputs[0].token_ids)
            self.num_wrong_lengths += len(tokens) != num_tokens
            if len(self.ended) < 20:
                self.ended[output.request_id] = prompt, tokens

    def disturb(self) -> None:
        chance = self.random.random()
        if chance < 0.05:
            name = self.random.choice(list(self.alive))
            self.engine.abort_request([name])
            del self.alive[name], self.added_at[name]
            self.num_aborted += 1
        elif chance < 0.3:
            manager = self.scheduler.kv_cache_manager
            requests = list(self.scheduler.requests.values())
            for request in self.random.sample(requests, min(4, len(requests))):
                self.num_leases += manager.lease_prefix(request, request.num_tokens, 1e6)

    def run(self, seconds: float) -> dict[str, Any]:
        from vllm import SamplingParams

        end = time.monotonic() + seconds
        while time.monotonic() < end or self.num_added < 3 * NUM_ALIVE:
            while len(self.alive) < NUM_ALIVE:
                self.add()
            self.disturb()
            self.step()
        while self.engine.has_unfinished_requests():
            self.step()
        pool = self.scheduler.kv_cache_manager.pool
        pool.index.check_integrity()
        num_free = pool.get_num_free_blocks()
        alone = [
            list(
                self.llm.generate(
                    {"prompt_token_ids": prompt},
                    SamplingParams(temperature=0.0, max_tokens=len(tokens), ignore_eos=True),
                    use_tqdm=False,
                )[0]
                .outputs[0]
                .token_ids
            )
            for prompt, tokens in self.ended.values()
        ]
        return {
            "num_added": self.num_added,
            "num_aborted": self.num_aborted,
            "num_leases": self.num_leases,
            "num_preempted": self.num_preempted,
            "num_left": len(self.alive),
            "num_wrong_lengths": self.num_wrong_lengths,
            "longest_wait_s": self.longest_wait_s,
            "num_leaked_blocks": NUM_BLOCKS - 1 - num_free,
            "num_other_outputs": sum(
                tokens != again
                for (_, tokens), again in zip(self.ended.values(), alone, strict=True)
            ),
        }


if __name__ == "__main__":
    model, seconds, result = sys.argv[1:]
    soak = EngineSoak(model)
    outcome = soak.run(float(seconds))
    soak.engine.engine_core.shutdown()
    Path(result).write_text(json.dumps(outcome))
