"""Runs rounds of prompts on a fresh engine in a process of its own and writes what came out.

    python engine_process.py JOB RESULT

It imports nothing of this project unless the job has plans or workflow contexts, so that it serves
a stock vLLM in another environment as well. Job and result are JSON; see ``conftest.run_engine``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def run(job: dict[str, Any]) -> list[list[dict[str, Any]]]:
    from vllm import LLM, SamplingParams

    llm = LLM(model=job["model"], **job["llm"])
    if job["plans"]:
        from vllm_helium.integration.engine_rpc import call_engines

        for plan in job["plans"]:
            call_engines(llm, "register_plan", plan.encode())
    params = SamplingParams(**job["sampling"])
    results = []
    for index, prompts in enumerate(job["rounds"]):
        inputs = [p if isinstance(p, str) else {"prompt_token_ids": p} for p in prompts]
        hints = {"workflow": job["workflows"][index]} if job["workflows"] else {}
        outputs = llm.generate(inputs, params, use_tqdm=False, **hints)
        results.append(
            [
                {
                    "token_ids": list(output.outputs[0].token_ids),
                    "num_cached_tokens": output.num_cached_tokens,
                }
                for output in outputs
            ]
        )
    return results


if __name__ == "__main__":
    job_path, result_path = map(Path, sys.argv[1:])
    result_path.write_text(json.dumps(run(json.loads(job_path.read_text()))))
