"""Reused prompt tokens under pressure: upstream, the tree by blocks, by tokens, and with a plan.

Usage: python -m benchmarks.prefix_cache.hit_rate [--seeds 3] [--output FILE]

Rows of a map-reduce workflow (eight experts over one context, then a judge that reads the context
again) mix with ordinary chat that grows turn by turn. Calls become ready in a random order within a
window; the pool holds a share of all distinct blocks of the prompts. No clock is involved, so equal
arguments give equal figures; the arms differ in the KV cache manager alone. The plan ranks the
experts alike, for their calls run row by row; the wrong plan says one expert after the other.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from benchmarks.prefix_cache.engines import BLOCK_SIZE, block_hasher, build_scheduler
from benchmarks.results_file import environment, write_results
from helium.protocol import EnginePlan, PlanOperator, TemplateNode, WorkflowContext
from vllm_helium.prefix_cache.options import PrefixCacheOptions

ARMS = ("stock", "tree_by_blocks", "tree", "tree_with_plan", "tree_with_wrong_plan")
POOL_SHARES = (0.125, 0.25, 0.5, 1.0)
MAX_RUNNING = 4
NUM_ROWS, NUM_EXPERTS, NUM_CHATS, NUM_TURNS = 24, 8, 24, 5
VOCAB = 32_000
Call = tuple[list[int], WorkflowContext | None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/prefix_cache_hit_rate.json")
    )
    arguments = parser.parse_args()
    rows = []
    for share in POOL_SHARES:
        for seed in range(arguments.seeds):
            row: dict[str, Any] = {"pool_share": share, "seed": seed}
            for arm in ARMS:
                row[arm] = serve(arm, share, seed)
            rows.append(row)
            print(json.dumps(row), flush=True)
    result = {"environment": environment(), "rows": rows}
    write_results(arguments.output, result)


def make_traffic(seed: int, *, is_plan_wrong: bool = False) -> tuple[EnginePlan, list[Call]]:
    """The plan and its calls mixed with chat turns, in order of arrival."""
    generator = random.Random(seed)

    def text(low: int, high: int) -> list[int]:
        return generator.choices(range(VOCAB), k=generator.randrange(low, high))

    system = text(200, 300)
    operators = [
        PlanOperator(
            name=f"expert-{i}",
            rank=1 + i if is_plan_wrong else 1,
            num_calls=NUM_ROWS,
            output_tokens=24.0,
            template=(1, 2),
        )
        for i in range(NUM_EXPERTS)
    ]
    operators.append(
        PlanOperator(
            name="judge", rank=100, num_calls=NUM_ROWS, output_tokens=24.0, template=(1, 2)
        )
    )
    plan = EnginePlan(
        version=1,
        workflow="map-reduce",
        operators=tuple(operators),
        templates=(
            TemplateNode(parent=0),
            TemplateNode(parent=0, num_tokens=len(system), token_ids=tuple(system)),
            TemplateNode(parent=1, num_tokens=500),
        ),
    )
    digest = plan.digest()
    arrivals: list[tuple[float, Call]] = []
    for row in range(NUM_ROWS):
        context_text = text(300, 700)
        for number, operator in enumerate(operators):
            context = WorkflowContext(
                plan=digest,
                run="run",
                operator=operator.name,
                row=row,
                segment_lengths=(len(system), len(context_text)),
            )
            is_judge = number == NUM_EXPERTS
            at = row + (16.0 if is_judge else generator.uniform(0.0, 12.0))
            arrivals.append((at, (system + context_text + text(20, 60), context)))
    for _ in range(NUM_CHATS):
        tokens, at = text(50, 200), generator.uniform(0.0, NUM_ROWS)
        for _ in range(NUM_TURNS):
            arrivals.append((at, (list(tokens), None)))
            tokens, at = tokens + text(60, 160), at + generator.uniform(0.5, 3.0)
    return plan, [call for _, call in sorted(arrivals, key=lambda arrival: arrival[0])]


def num_distinct_blocks(calls: list[Call]) -> int:
    """Blocks that hold every prompt once, each prefix shared."""
    return len(
        {
            hash(tuple(tokens[:end]))
            for tokens, _ in calls
            for end in range(BLOCK_SIZE, len(tokens) + 1, BLOCK_SIZE)
        }
    )


def serve(arm: str, pool_share: float, seed: int) -> dict[str, float]:
    plan, calls = make_traffic(seed, is_plan_wrong=arm == "tree_with_wrong_plan")
    is_planned = arm.endswith("plan")
    # Room for the running requests comes on top.
    num_blocks = int(pool_share * num_distinct_blocks(calls)) + MAX_RUNNING * 64
    options = PrefixCacheOptions(min_partial_tokens=0 if arm == "tree_by_blocks" else 8)
    scheduler = build_scheduler(
        "stock" if arm == "stock" else "tree", num_blocks, MAX_RUNNING, options
    )
    hasher = block_hasher() if arm == "stock" else None
    if is_planned:
        scheduler.kv_cache_manager.register_plan(plan.digest(), plan)
    num_cached = num_prompt = number = 0
    while number < len(calls) or scheduler.has_unfinished_requests():
        while number < len(calls) and len(scheduler.requests) < MAX_RUNNING:
            tokens, context = calls[number]
            params = SamplingParams(max_tokens=24, ignore_eos=True, temperature=0.0)
            request = Request(f"r{number}", list(tokens), params, None, block_hasher=hasher)
            request.helium = context if is_planned else None
            scheduler.add_request(request)
            number += 1
        output = scheduler.schedule()
        ids = list(output.num_scheduled_tokens)
        sampled = [
            [] if scheduler.requests[name].is_prefill_chunk else [int(name[1:]) * 7919 % VOCAB]
            for name in ids
        ]
        result = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={name: index for index, name in enumerate(ids)},
            sampled_token_ids=sampled,
        )
        for outputs in scheduler.update_from_output(output, result).values():
            for one in outputs.outputs:
                if one.prefill_stats is not None:
                    num_cached += one.prefill_stats.num_cached_tokens
                    num_prompt += one.prefill_stats.num_prompt_tokens
    if arm != "stock":
        scheduler.kv_cache_manager.pool.index.check_integrity()
    return {
        "num_blocks": num_blocks,
        "prompt_tokens": num_prompt,
        "cached_tokens": num_cached,
        "hit_ratio": round(num_cached / num_prompt, 4),
    }


if __name__ == "__main__":
    main()
