"""Lookup and insertion of one prompt: the radix tree against upstream's block hashes.

Usage: python -m benchmarks.prefix_cache.lookup_insert [--repeats 15] [--output FILE]

A prompt shares its first half with every resident prompt; its second half is new. Timed for both:
everything between a request with its token list and its blocks being findable, without the
allocation of blocks: hashing (upstream) or reading the token list (tree), lookup, insertion. CPU
time of the thread, median of the repeats. Each system is measured twice in the same run; the
distance of its two medians is the noise floor (A/A).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
import tracemalloc
from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.request import Request

from benchmarks.prefix_cache.engines import BLOCK_SIZE, block_hasher, build_manager
from benchmarks.results_file import environment, write_results

PROMPT_TOKENS = (2_048, 8_192, 32_768)
NUM_RESIDENT = (1, 64, 1_024)
VOCAB = 128_000
STAGES = ("prepare_us", "lookup_us", "insert_us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/prefix_cache_lookup_insert.json")
    )
    arguments = parser.parse_args()
    rows = []
    for num_tokens in PROMPT_TOKENS:
        for num_resident in NUM_RESIDENT:
            rows.append(compare(num_tokens, num_resident, arguments.repeats))
            print(json.dumps(rows[-1]), flush=True)
    memory = [measure_memory(system) for system in ("stock", "tree")]
    for row in memory:
        print(json.dumps(row))
    result = {"environment": environment(), "lookup_insert": rows, "memory": memory}
    write_results(arguments.output, result)


def compare(num_tokens: int, num_resident: int, repeats: int) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt_tokens": num_tokens, "resident_prompts": num_resident}
    totals = {}
    for system in ("stock", "tree"):
        bench = Bench(system, num_tokens, num_resident)
        first, second = bench.measure(repeats), bench.measure(repeats)
        totals[system] = statistics.median([first["total_us"], second["total_us"]])
        row[system] = first
        row[f"{system}_aa_ratio"] = round(second["total_us"] / first["total_us"], 3)
    row["speedup"] = round(totals["stock"] / totals["tree"], 1)
    return row


class Bench:
    """One system with its resident prompts."""

    def __init__(self, system: str, num_tokens: int, num_resident: int) -> None:
        self.random = random.Random(7)
        self.num_tokens = num_tokens
        self.hasher = block_hasher() if system == "stock" else None
        num_blocks = (num_resident + 2) * num_tokens // BLOCK_SIZE
        self.manager = build_manager(system, num_blocks, 2 * num_tokens)
        self.head = self.random.choices(range(VOCAB), k=num_tokens // 2)
        self.num_requests = 0
        for _ in range(num_resident):
            self.serve()

    def serve(self) -> dict[str, float]:
        """Serves one prompt as scheduler and engine core would; times the three stages."""
        manager, num_tokens = self.manager, self.num_tokens
        prompt = self.head + self.random.choices(range(VOCAB), k=num_tokens // 2)
        request = Request(
            f"r{self.num_requests}", prompt, SamplingParams(max_tokens=1, temperature=0.0), None
        )
        self.num_requests += 1
        manager.new_step_starts()
        clock = time.thread_time
        start = clock()
        if self.hasher is not None:
            request._block_hasher = self.hasher
            request.update_block_hashes()
        prepared = clock()
        blocks, num_cached, _ = manager.get_computed_blocks(request)
        looked_up = clock()
        [hits] = blocks.blocks
        hits = list(hits[: num_cached // BLOCK_SIZE])
        manager.block_pool.touch(hits)
        table = hits + manager.block_pool.get_new_blocks(num_tokens // BLOCK_SIZE - len(hits))
        allocated = clock()
        manager.block_pool.cache_full_blocks(
            request, table, len(hits), len(table), BLOCK_SIZE, kv_cache_group_id=0
        )
        inserted = clock()
        manager.block_pool.free_blocks(reversed(table))
        times = (prepared - start, looked_up - prepared, inserted - allocated)
        stages = dict(zip(STAGES, (1e6 * seconds for seconds in times), strict=True))
        return stages | {"total_us": sum(stages.values())}

    def measure(self, repeats: int) -> dict[str, float]:
        samples = [self.serve() for _ in range(repeats)]
        return {
            name: round(statistics.median(sample[name] for sample in samples), 1)
            for name in (*STAGES, "total_us")
        }


def measure_memory(
    system: str, num_blocks: int = 65_536, num_tokens: int = 2_048
) -> dict[str, Any]:
    """Bytes per cached block once the pool is full of distinct prompts.

    ``python_bytes`` is the traced Python heap, where upstream keeps hashes and map; the compiled
    index is not traced and counts its own bytes, by capacity and without the tokens.
    """
    manager: KVCacheManager = build_manager(system, num_blocks, 2 * num_tokens)
    hasher = block_hasher() if system == "stock" else None
    generator = random.Random(3)
    num_prompts = (num_blocks - 1) * BLOCK_SIZE // num_tokens
    prompts = [generator.choices(range(VOCAB), k=num_tokens) for _ in range(num_prompts)]
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number, prompt in enumerate(prompts):
        request = Request(
            f"m{number}", prompt, SamplingParams(max_tokens=1), None, block_hasher=hasher
        )
        table = manager.block_pool.get_new_blocks(num_tokens // BLOCK_SIZE)
        manager.block_pool.cache_full_blocks(request, table, 0, len(table), BLOCK_SIZE, 0)
        manager.block_pool.free_blocks(reversed(table))
        del request
    python_bytes = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    cached = num_prompts * num_tokens // BLOCK_SIZE
    row = {
        "system": system,
        "cached_blocks": cached,
        "python_bytes_per_block": round(python_bytes / cached, 1),
    }
    if system == "tree":
        stats = manager.pool.index.stats()
        assert stats["num_indexed"] == cached
        row["index_bytes_per_block"] = round(stats["num_bytes"] / cached, 1)
        row["token_bytes_per_block"] = 4 * BLOCK_SIZE
    return row


if __name__ == "__main__":
    main()
