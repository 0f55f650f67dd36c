"""One engine serves all prompts: a process of the equality benchmark.

Usage: python -m benchmarks.prefix_cache.equality_arm JOB.json RESULT.json
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONTROL = "tree_without_copies"
MAX_NUM_SEQS = 16


def main() -> None:
    job, result = map(Path, sys.argv[1:])
    result.write_text(json.dumps(run_arm(json.loads(job.read_text()))))


def run_arm(job: dict[str, Any]) -> dict[str, Any]:
    """One engine, all prompts at once."""
    from vllm import LLM, SamplingParams

    from vllm_helium.simulator.evictions import count_evictions

    if job["arm"] == CONTROL:
        _suppress_copies()
    with tempfile.TemporaryDirectory() as folder:
        llm = LLM(
            model=str(model_folder(job["model"], Path(folder))),
            helium=job["arm"] != "stock",
            dtype="float32",
            block_size=job["block_size"],
            num_gpu_blocks_override=job["num_blocks"],
            kv_cache_memory_bytes=1 << 30,
            max_model_len=job["max_model_len"],
            max_num_seqs=MAX_NUM_SEQS,
            enforce_eager=True,
        )
        scheduler = llm.llm_engine.engine_core.engine_core.scheduler
        num_preemptions = _count_preemptions(scheduler)
        num_evictions = count_evictions(scheduler)
        params = SamplingParams(
            temperature=0.0, max_tokens=job["max_tokens"], ignore_eos=True, logprobs=2
        )
        inputs = [{"prompt_token_ids": prompt} for prompt in job["prompts"]]
        outputs = llm.generate(inputs, params, use_tqdm=False)
        completions = [output.outputs[0] for output in outputs]
        return {
            "preemptions": num_preemptions(),
            "evicted": num_evictions(),
            "token_ids": [list(completion.token_ids) for completion in completions],
            "leads": [[_lead(top) for top in completion.logprobs] for completion in completions],
            "cached": [output.num_cached_tokens for output in outputs],
        }


def _count_preemptions(scheduler: Any) -> Callable[[], int]:
    """Returns a function that tells the preemptions from now on."""
    preempt, count = scheduler._preempt_request, 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return preempt(*args, **kwargs)

    scheduler._preempt_request = counted
    return lambda: count


def _lead(top: dict[int, Any]) -> float:
    first, second = sorted((entry.logprob for entry in top.values()), reverse=True)[:2]
    return float(first - second)


def _suppress_copies() -> None:
    """Every block is copied onto itself; upstream releases the blocks of a copy after its step."""
    from vllm_helium.integration.kv_cache_manager import TrtKVCacheManager

    take = TrtKVCacheManager.take_kv_cache_block_copies

    def take_none(manager: Any) -> Any:
        copies, retained = take(manager)
        return [copy._replace(src_block_id=copy.dst_block_id) for copy in copies], retained

    TrtKVCacheManager.take_kv_cache_block_copies = take_none


def model_folder(name: str, folder: Path) -> Path:
    """Makes the model where needed: the tiny one in ``folder``, SmolLM2 in the user's cache."""
    if name == "smollm2":
        from vllm_helium.models.smollm2 import ensure_smollm2

        return ensure_smollm2()
    from vllm_helium.models.tiny import make_tiny_llama

    return make_tiny_llama(folder / "llama")


if __name__ == "__main__":
    main()
