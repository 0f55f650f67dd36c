"""Greedy outputs and cached tokens of an engine with the tree, against the same engine without.

Usage: python -m benchmarks.prefix_cache.equality [--model tiny smollm2] [--block-size 32 64 128]

200 prompts share heads of random lengths; each arm is a fresh engine in a process of its own:
stock (Helium off), tree, and tree with the sub-block copies suppressed, whose outputs must differ.
Every arm runs with an ample KV cache and with one so small that blocks are evicted and requests
preempted; the control runs where ``--control`` says. The exit status is 1 where a row breaks a
claim: equal outputs, as many cached tokens as stock, pressure that is real, a control that differs.

Batches differ between arms, and so may the last bits of a float; every token's lead over the
runner-up is therefore kept. Where outputs part, the row says by how much the first parting token
led, and how many prompts of *stock* part between its own ample and small KV cache.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.prefix_cache.equality_arm import CONTROL, MAX_NUM_SEQS, model_folder
from benchmarks.results_file import write_results

ARMS = ("stock", "tree", CONTROL)
SIZES = ("ample", "small")
NUM_PROMPTS = 200
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


@dataclass(frozen=True)
class Traffic:
    """What the prompts of a model look like; lengths in tokens, the upper bound excluded.

    Attributes:
        prompts_per_head: How many prompts share a head on average.
        small_share: The small KV cache as a share of a full batch of longest requests.
    """

    head_tokens: tuple[int, int]
    own_tokens: tuple[int, int]
    prompts_per_head: int
    max_tokens: int
    max_model_len: int
    small_share: float


TRAFFIC = {
    "tiny": Traffic((60, 320), (4, 40), 10, 48, 512, 1 / 3),
    # A real model on one core: shorter, and more of it shared.
    "smollm2": Traffic((48, 168), (4, 24), 25, 16, 256, 1 / 5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=tuple(TRAFFIC), nargs="+", default=["tiny"])
    parser.add_argument("--block-size", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--prompts", type=int, default=NUM_PROMPTS)
    parser.add_argument("--control", choices=SIZES, nargs="*", default=list(SIZES))
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("benchmarks/results/prefix_cache_equality.json"),
        help="its rows of other models and block sizes stay",
    )
    arguments = parser.parse_args()
    problems = []
    for model in arguments.model:
        for block_size in arguments.block_size:
            rows = compare(model, block_size, arguments.prompts, arguments.control)
            for row in rows:
                print(json.dumps(row), flush=True)
                problems += [f"{model}, block {block_size}: {what}" for what in broken_claims(row)]
            _merge(arguments.output, rows)
    for problem in problems:
        print(f"broken: {problem}")
    sys.exit(bool(problems))


def _merge(path: Path, rows: list[dict[str, Any]]) -> None:
    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return list(TRAFFIC).index(row["model"]), row["block_size"], row["kv_cache"]

    kept = json.loads(path.read_text()) if path.exists() else []
    merged = {key(row): row for row in [*kept, *rows]}
    write_results(path, [merged[name] for name in sorted(merged)])


# --- prompts -------------------------------------------------------------------------------------


def prompts(model: str, count: int) -> list[list[int]]:
    """Prompts that share heads; the heads end anywhere in a block."""
    generator, traffic = random.Random(1), TRAFFIC[model]
    text = _text_source(model, generator)

    def draw(bounds: tuple[int, int]) -> list[int]:
        return text(generator.randrange(*bounds))

    heads = [draw(traffic.head_tokens) for _ in range(max(1, count // traffic.prompts_per_head))]
    return [
        (head := generator.choice(heads))[: generator.randrange(len(head) // 2, len(head) + 1)]
        + draw(traffic.own_tokens)
        for _ in range(count)
    ]


def _text_source(model: str, generator: random.Random) -> Callable[[int], list[int]]:
    """Makes so many tokens: of prose for a model that reads, random bytes for the other."""
    if model == "tiny":
        return lambda count: [generator.randrange(10, 250) for _ in range(count)]
    from tokenizers import Tokenizer

    from benchmarks.workflows.text import prose

    tokenizer = Tokenizer.from_file(str(model_folder(model, Path()) / "tokenizer.json"))

    def text(count: int) -> list[int]:
        ids: list[int] = tokenizer.encode(prose(count, str(generator.random()))).ids
        return ids[:count]

    return text


# --- comparison ----------------------------------------------------------------------------------


def compare(
    model: str,
    block_size: int,
    count: int,
    control: list[str],
    sizes: tuple[str, ...] = SIZES,
) -> list[dict[str, Any]]:
    """Rows of the table: every arm at one block size and the sizes of the KV cache.

    Args:
        count: Prompts.
        control: Sizes at which the arm without copies runs too.
    """
    texts = prompts(model, count)
    rows = []
    stock_by_size = {}
    for size in sizes:
        num_blocks = num_kv_blocks(model, block_size, size)
        job = {
            "model": model,
            "block_size": block_size,
            "num_blocks": num_blocks,
            "max_model_len": TRAFFIC[model].max_model_len,
            "max_tokens": TRAFFIC[model].max_tokens,
        }
        results = {
            arm: _run_in_process(job | {"arm": arm, "prompts": texts})
            for arm in ARMS
            if arm != CONTROL or size in control
        }
        stock, tree = results["stock"], results["tree"]
        stock_by_size[size] = stock
        more = [t - s for s, t in zip(stock["cached"], tree["cached"], strict=True)]
        row = {
            "model": model,
            "block_size": block_size,
            "kv_cache": size,
            "num_blocks": num_blocks,
            "prompts": count,
            "identical": count - len(partings(stock, tree)),
            "partings": partings(stock, tree),
            "smallest_lead": min(min(leads) for leads in stock["leads"]),
            "cached_tokens": {arm: sum(result["cached"]) for arm, result in results.items()},
            "requests_with_fewer_cached": sum(difference < 0 for difference in more),
            "requests_with_more_cached": sum(difference > 0 for difference in more),
            "preemptions": {arm: result["preemptions"] for arm, result in results.items()},
            "evicted_blocks": {arm: result["evicted"] for arm, result in results.items()},
        }
        if CONTROL in results:
            row["identical_without_copies"] = count - len(partings(stock, results[CONTROL]))
        rows.append(row)
    if len(stock_by_size) > 1:
        rows[-1]["stock_ample_to_small_partings"] = partings(*stock_by_size.values())
    return rows


def num_kv_blocks(model: str, block_size: int, size: str) -> int:
    """Blocks for a share of a full batch of longest requests, or for every prompt."""
    traffic = TRAFFIC[model]
    blocks_per_request = traffic.max_model_len // block_size
    batch = MAX_NUM_SEQS * blocks_per_request
    if size == "ample":
        return 12 * batch
    # The first block holds nothing; two requests of any length must fit.
    return max(int(batch * traffic.small_share), 2 * blocks_per_request + 1)


def partings(one: dict[str, Any], other: dict[str, Any]) -> list[dict[str, float]]:
    """Where outputs differ: prompt, first position, and the token's lead there in ``one``.

    Leads are differences of log-probabilities to the runner-up.
    """
    found = []
    pairs = zip(one["token_ids"], other["token_ids"], strict=True)
    for number, (tokens, others) in enumerate(pairs):
        if tokens != others:
            position = next(
                (i for i, (a, b) in enumerate(zip(tokens, others, strict=False)) if a != b),
                min(len(tokens), len(others)),
            )
            lead = one["leads"][number][position]
            found.append({"prompt": number, "position": position, "lead": lead})
    return found


def broken_claims(row: dict[str, Any]) -> list[str]:
    """What a row should show and does not."""
    cached, is_small = row["cached_tokens"], row["kv_cache"] == "small"
    claims = {
        f"{row['identical']} of {row['prompts']} outputs equal stock's": (
            row["identical"] == row["prompts"]
        ),
        f"fewer tokens cached than on stock, {cached}": cached["tree"] >= cached["stock"],
        "outputs without copies equal stock's": (
            row.get("identical_without_copies", 0) < row["prompts"]
        ),
    }
    if is_small:
        for name in ("preemptions", "evicted_blocks"):
            claims[f"no pressure, {name} {row[name]}"] = all(row[name].values())
    else:
        claims[f"{row['requests_with_fewer_cached']} requests with fewer tokens cached"] = (
            row["requests_with_fewer_cached"] == 0
        )
        claims["pressure on the ample KV cache"] = not any(row["preemptions"].values())
    return [claim for claim, holds in claims.items() if not holds]


def _run_in_process(job: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        job_path, result_path = Path(folder, "job.json"), Path(folder, "result.json")
        job_path.write_text(json.dumps(job))
        command = [sys.executable, "-m", "benchmarks.prefix_cache.equality_arm"]
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


if __name__ == "__main__":
    main()
