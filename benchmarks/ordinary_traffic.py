"""What Helium costs or gives traffic that knows nothing of workflows: ours beside stock vLLM.

    python -m benchmarks.ordinary_traffic [--calls N] [--output FILE]

Chats in virtual time: a few applications with system prompts of their own, conversations of one to
four turns, people who read before they answer. Users come by a Poisson process, few (``steady``),
many (``busy``), as many with a KV cache that is too small (``full``), or all at once (``burst``).
Nothing carries a plan. Ratios are to stock vLLM on the same calls; a latency is the time from the
arrival of a call to its last token.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from benchmarks.results_file import environment, write_results
from helium.cost import RooflineModel
from vllm_helium.simulator.engine_options import EngineOptions
from vllm_helium.simulator.figures import CallRecord, quantile
from vllm_helium.simulator.simulation import Simulation

NUM_APPLICATIONS = 12
MEAN_READ_S = 2.0
LOADS = {
    "steady": (4.0, None),
    "busy": (40.0, None),
    "full": (40.0, 4_000),
    "burst": (float("inf"), None),
}
"""New conversations per second, and KV blocks; ``None`` for what the device holds."""

SEEDS = (0, 1)


@dataclass(frozen=True)
class Conversation:
    """Turns of one user.

    Attributes:
        arrival_s: When the first turn comes.
        system: Tokens of the application's prompt.
        turns: Per turn what the user says, what is answered, both as tokens, and how many seconds
            pass before the next turn.
    """

    arrival_s: float
    system: list[int]
    turns: list[tuple[list[int], list[int], float]]


def conversations(num_calls: int, load: str, seed: int) -> list[Conversation]:
    """Returns conversations with at least so many turns in all; the same for the same arguments."""
    draw, (rate, _) = random.Random(f"{load}/{seed}"), LOADS[load]

    def tokens(count: int) -> list[int]:
        return [draw.randrange(1, 100_000) for _ in range(count)]

    systems = [tokens(draw.randrange(50, 1_500)) for _ in range(NUM_APPLICATIONS)]
    weights = [1 / (number + 1) for number in range(NUM_APPLICATIONS)]
    found: list[Conversation] = []
    now = 0.0
    while num_calls > 0:
        now += draw.expovariate(rate) if rate < float("inf") else 0.0
        turns = [
            (
                tokens(min(2_000, 10 + round(draw.expovariate(1 / 150)))),
                tokens(min(1_000, 8 + round(draw.expovariate(1 / 180)))),
                draw.expovariate(1 / MEAN_READ_S),
            )
            for _ in range(draw.choice((1, 1, 2, 3, 4)))
        ]
        num_calls -= len(turns)
        found.append(Conversation(now, draw.choices(systems, weights)[0], turns))
    return found


def replay(
    users: Sequence[Conversation], helium: bool, num_blocks: int | None = None
) -> dict[str, Any]:
    """Runs the conversations on one engine; returns what their users saw."""
    cost = RooflineModel.preset("H100-80GB", "Qwen3-8B")
    simulation = Simulation(cost, EngineOptions(helium=helium, num_blocks=num_blocks))
    [engine] = simulation.engines
    numbers = iter(range(1 << 30))

    async def answered(prompt: list[int], answer: list[int]) -> None:
        done: asyncio.Future[CallRecord] = asyncio.get_running_loop().create_future()
        params = SamplingParams(
            temperature=0.0,
            max_tokens=len(answer),
            ignore_eos=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        engine.add(f"call-{next(numbers):06d}", prompt, answer, params, done.set_result)
        await done

    async def talk(user: Conversation) -> None:
        await asyncio.sleep(user.arrival_s)
        history = list(user.system)
        for said, answer, read_s in user.turns:
            history += said
            await answered(list(history), answer)
            history += answer
            await asyncio.sleep(read_s)

    async def all_users() -> None:
        await asyncio.gather(*map(talk, users))

    simulation.run(all_users)
    calls, figures = simulation.calls(), simulation.figures()
    last_s = max(call.finish_s for call in calls)
    latencies = [call.latency_s for call in calls]
    first = [call.first_token_s - call.arrival_s for call in calls]
    return {
        "num_calls": len(calls),
        "makespan_s": last_s,
        "output_tokens_per_s": figures.num_output_tokens / last_s,
        "latency_p50_s": quantile(latencies, 0.5),
        "latency_p99_s": quantile(latencies, 0.99),
        "first_token_p50_s": quantile(first, 0.5),
        "first_token_p99_s": quantile(first, 0.99),
        "hit_ratio": figures.hit_ratio,
        "num_running_mean": sum(latencies) / last_s,
        "num_evictions": figures.num_evictions,
        "num_preemptions": figures.num_preemptions,
    }


def compared(load: str, seed: int, num_calls: int) -> dict[str, Any]:
    """Returns stock, ours and ratios: throughput above 1 and times below 1 are in our favour."""
    users = conversations(num_calls, load, seed)
    stock, ours = (replay(users, helium, LOADS[load][1]) for helium in (False, True))
    ratios = {
        name: ours[name] / stock[name]
        for name in stock
        if name.endswith(("_p50_s", "_p99_s", "_per_s"))
    }
    return {"load": load, "seed": seed, "stock": stock, "helium": ours, "ratios": ratios}


def summary(results: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a line per load; the worst of its seeds."""
    lines = []
    for load in dict.fromkeys(result["load"] for result in results):
        mine = [result for result in results if result["load"] == load]
        throughput = min(result["ratios"]["output_tokens_per_s"] for result in mine)
        worst = {
            name: max(result["ratios"][name] for result in mine)
            for name in ("latency_p50_s", "latency_p99_s", "first_token_p99_s")
        }
        present = max(result["stock"]["num_running_mean"] for result in mine)
        lines.append(
            f"ordinary    {load:8} ({present:.0f} calls present) helium over stock: "
            f"throughput {throughput:.3f}, latency p50 {worst['latency_p50_s']:.3f}, p99 "
            f"{worst['latency_p99_s']:.3f}, first token p99 {worst['first_token_p99_s']:.3f}; "
            f"worst of {len(mine)} seeds"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the summary and writes the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ordinary_traffic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--calls", type=int, default=1_000, help="of every run, about")
    parser.add_argument("--load", action="append", choices=list(LOADS), help="repeatable")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    results = [
        compared(load, seed, options.calls) for load in options.load or LOADS for seed in SEEDS
    ]
    lines = summary(results)
    print("\n".join(lines))
    if options.output is not None:
        report = {"environment": environment(), "summary": lines, "runs": results}
        write_results(options.output, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
