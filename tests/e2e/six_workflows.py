"""Runs the six benchmark workflows on an engine of this process and writes their outputs.

    python -m tests.e2e.six_workflows MODEL RESULT

Writes a JSON object: way of running -> workflow -> outputs, ``naive`` among the ways: one call
after the other on an engine without Helium.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.workflows import WORKFLOWS

NAMES = (
    "mapreduce-mmlu",
    "debate-mmlu",
    "reflection-tatqa",
    "iterative-amazon",
    "parallel-amazon",
    "trading-4b",
)
OPTIONS = {"size": 2, "scale": 0.01, "max_tokens": 4}
ENGINE = {
    "block_size": 32,
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 64 << 20,
    "max_model_len": 8192,
    "max_num_seqs": 8,
}


def workloads() -> list[Any]:
    return [WORKFLOWS[name](**OPTIONS) for name in NAMES]


@contextlib.contextmanager
def engine(model: str, **options: Any) -> Iterator[Any]:
    """An engine that is gone at the end: its process groups are the process's, one at a time."""
    from vllm import LLM

    llm = LLM(model, **ENGINE, **options)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def naive(llm: Any, workload: Any) -> Any:
    from helium.plan.interpret import interpret
    from vllm_helium.engine_calls import sampling_params

    def model(call: Any, operator: Any, row: Any) -> tuple[str, ...]:
        messages = [{"role": role, "content": content} for role, content in call.messages]
        (output,) = llm.chat([messages], sampling_params(call.sampling), use_tqdm=False)
        return tuple(choice.text for choice in output.outputs)

    return interpret(workload.compile(), model)


def planned(llm: Any, workload: Any, **arguments: Any) -> Any:
    result = llm.run_workflow(workload.graph, workload.batch, use_tqdm=False, **arguments)
    assert result.failures == [], result.failures[:3]
    return result.outputs


def main(model: str, folder: str) -> dict[str, dict[str, Any]]:
    from helium.optimizer.driver import ALL_ON

    every: dict[str, Any] = {"as written": {"switches": ALL_ON.without(*ALL_ON.__struct_fields__)}}
    for rule in ALL_ON.__struct_fields__:
        every[f"without {rule}"] = {"switches": ALL_ON.without(rule)}
    cached = {"prompt_cache": f"{folder}/prompts.db"}
    ways = {"all on": {}, **every, "cache filled": cached, "cache read": cached}
    found: dict[str, dict[str, Any]] = {}
    with engine(model) as llm:
        found["naive"] = {w.name: naive(llm, w) for w in workloads()}
        found["helium off"] = {w.name: planned(llm, w) for w in workloads()}
    with engine(model, helium=True) as llm:
        for way, arguments in ways.items():
            found[way] = {w.name: planned(llm, w, **arguments) for w in workloads()}
    for way, config in (
        ("first come, first served", {"order": "fcfs"}),
        ("stock prefix index", {"prefix_index": "stock"}),
        ("whole blocks", {"min_partial_tokens": 0}),
    ):
        with engine(model, helium=config) as llm:
            found[way] = {w.name: planned(llm, w) for w in workloads()}
    return found


if __name__ == "__main__":
    model, result = sys.argv[1:]
    outputs = main(model, os.path.dirname(result))
    with open(result, "w") as file:
        json.dump(outputs, file)
