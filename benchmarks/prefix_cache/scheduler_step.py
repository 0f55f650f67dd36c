"""CPU time of one engine step: upstream's, with the radix tree, and with our scheduler as well.

Usage: python -m benchmarks.prefix_cache.scheduler_step [--rounds 8] [--steps 64] [--output FILE]

Upstream's scheduler decodes a full batch of 16, 64 or 256 requests; ``schedule()`` and
``update_from_output()`` are timed apart (hashing of new tokens is in the latter). Six schedulers
run in turns in one process, round by round: stock, tree, helium, and all again; the repeats give
the noise floor (A/A). A second table admits and prefills the batch: prompts of 2,000 tokens of
which half are shared.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from benchmarks.prefix_cache.engines import block_hasher, build_scheduler
from benchmarks.results_file import environment, write_results

NUM_RUNNING = (16, 64, 256)
ARMS = ("stock", "tree", "helium", "stock_again", "tree_again", "helium_again")
VOCAB = 32_000
PROMPT_TOKENS = 2_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/prefix_cache_scheduler_step.json")
    )
    arguments = parser.parse_args()
    rows = []
    for num_running in NUM_RUNNING:
        rows.append(compare(num_running, arguments.rounds, arguments.steps))
        print(json.dumps(rows[-1]), flush=True)
    result = {"environment": environment(), "steps": rows}
    write_results(arguments.output, result)


def compare(num_running: int, rounds: int, steps: int) -> dict[str, Any]:
    arms = {arm: Arm(arm.partition("_")[0], num_running, rounds * steps) for arm in ARMS}
    row: dict[str, Any] = {"running": num_running}
    row["admission_ms"] = {arm: round(1e3 * bench.admit(), 3) for arm, bench in arms.items()}
    samples: dict[str, list[tuple[float, float]]] = {arm: [] for arm in ARMS}
    for _ in range(rounds):
        for arm, bench in arms.items():
            samples[arm] += [bench.step() for _ in range(steps)]
    for name, index in (("schedule_ms", 0), ("update_ms", 1)):
        row[name] = {
            arm: round(1e3 * statistics.median(sample[index] for sample in samples[arm]), 4)
            for arm in ARMS
        }
        row[f"{name}_mean"] = {
            arm: round(1e3 * statistics.fmean(sample[index] for sample in samples[arm]), 4)
            for arm in ARMS
        }
    for arm in arms.values():
        arm.finish()
    return row


class Arm:
    """A scheduler with a full batch of long-running requests."""

    def __init__(self, system: str, num_running: int, num_steps: int) -> None:
        num_blocks = num_running * (PROMPT_TOKENS + num_steps + 64) // 16 + 64
        self.scheduler = build_scheduler(system, num_blocks, num_running)
        hasher = block_hasher() if system == "stock" else None
        generator = random.Random(1)
        head = generator.choices(range(VOCAB), k=PROMPT_TOKENS // 2)
        self.prompts = [
            head + generator.choices(range(VOCAB), k=PROMPT_TOKENS // 2) for _ in range(num_running)
        ]
        self.hasher = hasher
        self.num_steps = num_steps

    def admit(self) -> float:
        """Adds, looks up and prefills the whole batch; returns CPU seconds, hashing included."""
        start = time.thread_time()
        for number, prompt in enumerate(self.prompts):
            params = SamplingParams(
                max_tokens=self.num_steps + 32, ignore_eos=True, temperature=0.0
            )
            self.scheduler.add_request(
                Request(f"r{number}", prompt, params, None, block_hasher=self.hasher)
            )
        while len(self.scheduler.running) < len(self.prompts) or any(
            request.num_computed_tokens < request.num_prompt_tokens
            for request in self.scheduler.running
        ):
            self.step()
        return time.thread_time() - start

    def step(self) -> tuple[float, float]:
        """One step; CPU seconds of ``schedule()`` and of ``update_from_output()``."""
        start = time.thread_time()
        output = self.scheduler.schedule()
        scheduled = time.thread_time()
        ids = list(output.num_scheduled_tokens)
        requests = self.scheduler.requests
        tokens = [
            [] if requests[name].is_prefill_chunk else [requests[name].num_tokens % VOCAB]
            for name in ids
        ]
        result = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={name: index for index, name in enumerate(ids)},
            sampled_token_ids=tokens,
        )
        made = time.thread_time()
        self.scheduler.update_from_output(output, result)
        return scheduled - start, time.thread_time() - made

    def finish(self) -> None:
        for name in list(self.scheduler.requests):
            self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)


if __name__ == "__main__":
    main()
