"""Greedy outputs and cached tokens of an engine with the tree, against the same engine without.

Usage: python -m benchmarks.prefix_cache.equality [--model tiny] [--block-size 32 64 128]

200 prompts share heads of random lengths; each arm is a fresh engine in a process of its own:
stock (Helium off), tree, and tree with the sub-block copies suppressed, whose outputs must differ.
Every arm runs with an ample KV cache and with one so small that requests are preempted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ARMS = ("stock", "tree", "tree_without_copies")
NUM_PROMPTS = 200
MAX_MODEL_LEN = 512
MAX_TOKENS = 48
MAX_NUM_SEQS = 16
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("tiny", "smollm2"), default="tiny")
    parser.add_argument("--block-size", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--prompts", type=int, default=NUM_PROMPTS)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--job", type=Path, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        job, result = arguments.job
        result.write_text(json.dumps(run_arm(json.loads(job.read_text()))))
        return
    rows = []
    for block_size in arguments.block_size:
        for is_small in (False, True):
            rows.append(compare(arguments.model, block_size, is_small, arguments.prompts))
            print(json.dumps(rows[-1]), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=1) + "\n")


def prompts(count: int) -> list[list[int]]:
    """Prompts of which about ten each share a head; the heads end anywhere in a block."""
    generator = random.Random(1)
    heads = [_tokens(generator, generator.randrange(60, 320)) for _ in range(max(1, count // 10))]
    return [
        (head := generator.choice(heads))[: generator.randrange(len(head) // 2, len(head) + 1)]
        + _tokens(generator, generator.randrange(4, 40))
        for _ in range(count)
    ]


def _tokens(generator: random.Random, count: int) -> list[int]:
    return [generator.randrange(10, 250) for _ in range(count)]


def compare(model: str, block_size: int, is_small: bool, count: int) -> dict[str, Any]:
    """One row of the table: every arm at one block size and one size of the KV cache."""
    # Room for a third of the batch, or for everything.
    batch = MAX_NUM_SEQS * MAX_MODEL_LEN // block_size
    num_blocks = max(batch // 3, 2 * MAX_MODEL_LEN // block_size) if is_small else 12 * batch
    results = {
        arm: _run_in_process(
            {"arm": arm, "model": model, "block_size": block_size, "num_blocks": num_blocks}
            | {"prompts": prompts(count)}
        )
        for arm in ARMS
    }
    stock, tree, control = (results[arm] for arm in ARMS)
    differences = [t - s for s, t in zip(stock["cached"], tree["cached"], strict=True)]
    return {
        "model": model,
        "block_size": block_size,
        "num_blocks": num_blocks,
        "prompts": count,
        "identical": _same(stock, tree),
        "identical_without_copies": _same(stock, control),
        "cached_tokens": {arm: sum(result["cached"]) for arm, result in results.items()},
        "requests_with_fewer_cached": sum(difference < 0 for difference in differences),
        "requests_with_more_cached": sum(difference > 0 for difference in differences),
        "preemptions": {arm: result["preemptions"] for arm, result in results.items()},
        "evicted_blocks": tree["evicted"],
    }


def _same(one: dict[str, Any], other: dict[str, Any]) -> int:
    return sum(a == b for a, b in zip(one["token_ids"], other["token_ids"], strict=True))


def _run_in_process(job: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        job_path, result_path = Path(folder, "job.json"), Path(folder, "result.json")
        job_path.write_text(json.dumps(job))
        command = [sys.executable, "-m", "benchmarks.prefix_cache.equality", "--job"]
        done = subprocess.run(
            [*command, str(job_path), str(result_path)],
            cwd=Path(__file__).resolve().parents[2],
            env=os.environ | ENVIRONMENT,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"arm {job['arm']!r} failed:\n{done.stderr[-4000:]}")
        result: dict[str, Any] = json.loads(result_path.read_text())
        return result


def run_arm(job: dict[str, Any]) -> dict[str, Any]:
    """Runs in the child: one engine, all prompts at once."""
    from vllm import LLM, SamplingParams

    if job["arm"] == "tree_without_copies":
        _suppress_copies()
    with tempfile.TemporaryDirectory() as folder:
        llm = LLM(
            model=str(_model(job["model"], Path(folder))),
            helium=job["arm"] != "stock",
            dtype="float32",
            block_size=job["block_size"],
            num_gpu_blocks_override=job["num_blocks"],
            kv_cache_memory_bytes=1 << 30,
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=MAX_NUM_SEQS,
            enforce_eager=True,
        )
        scheduler = llm.llm_engine.engine_core.engine_core.scheduler
        preempt, num_preemptions = scheduler._preempt_request, 0

        def count(*args: Any, **kwargs: Any) -> Any:
            nonlocal num_preemptions
            num_preemptions += 1
            return preempt(*args, **kwargs)

        scheduler._preempt_request = count
        params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
        inputs = [{"prompt_token_ids": prompt} for prompt in job["prompts"]]
        outputs = llm.generate(inputs, params, use_tqdm=False)
        return {
            "token_ids": [list(output.outputs[0].token_ids) for output in outputs],
            "cached": [output.num_cached_tokens for output in outputs],
            "preemptions": num_preemptions,
            "evicted": getattr(scheduler.kv_cache_manager.block_pool, "num_evicted_blocks", None),
        }


def _suppress_copies() -> None:
    from vllm_helium.integration.kv_cache_manager import TrtKVCacheManager

    take = TrtKVCacheManager.take_kv_cache_block_copies
    TrtKVCacheManager.take_kv_cache_block_copies = lambda self: ([], take(self)[1])


def _model(name: str, folder: Path) -> Path:
    if name == "smollm2":
        from vllm_helium.models.smollm2 import ensure_smollm2

        return ensure_smollm2()
    from vllm_helium.models.tiny import make_tiny_llama

    return make_tiny_llama(folder / "llama")


if __name__ == "__main__":
    main()
