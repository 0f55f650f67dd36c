"""How fast any scheduler could be: a lower bound on the makespan of a simulated setting.

    python -m benchmarks.lower_bound --workflow trading-8b --rows 16

The bound follows from the cost model and the calls themselves, whatever their order. It is the
largest of three times, each of which no schedule on one engine can beat:

* *arithmetic*: every distinct block of prompt is computed once and every output token once;
* *traffic*: every output token reads the KV of its whole context; every step reads the weights;
* *critical path*: the outputs of the longest chain of calls, one token per step.

Steps are at least as many as the KV cache makes them: a call holds its context for as many steps as
it decodes, its part of a block that n prompts begin with being one n-th, and all calls of a step
must fit. That holds for every set of calls: before the first of them come the steps of the shortest
chain that leads to one, after the last of them those of the shortest chain that reads one. The
bound takes the worst set of a head and a tail of at least so many steps, as in machine scheduling
with release times and delivery times. It is optimistic: whoever can share decodes together, and
prefill needs no room.
"""

from __future__ import annotations

import argparse
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.output_lengths import output_lengths
from benchmarks.results_file import environment, write_results
from benchmarks.simulated_run import Setting
from benchmarks.workflows import WORKFLOWS
from helium.cost import DEVICES, MODELS, RooflineModel
from helium.optimizer.driver import Switches, optimize
from helium.plan.calls import Call
from helium.plan.compiled_plan import CompiledPlan
from helium.plan.interpret import interpret
from vllm_helium.simulator.fake_model import FakeModel
from vllm_helium.simulator.tokenizer import PieceTokenizer

BLOCK_SIZE = 16
MAX_NUM_SEQS = 1_024

Item = tuple[str, int]
"""An operator and one of its rows."""


@dataclass(frozen=True)
class Calls:
    """What is left of the calls of a workflow.

    Attributes:
        prompt_tokens: Per answer.
        own_tokens: KV tokens a prompt takes at least, per answer: its part of what it shares.
        output_tokens: Per answer.
        num_new_tokens: Tokens of distinct prompt blocks that are no call's output.
        heads: Output tokens on the longest chain that leads to it, per answer.
        tails: Output tokens on the longest chain that reads it, per answer.
    """

    prompt_tokens: Sequence[int]
    own_tokens: Sequence[float]
    output_tokens: Sequence[int]
    num_new_tokens: int
    heads: Sequence[int]
    tails: Sequence[int]

    @property
    def critical_tokens(self) -> int:
        """Output tokens on the longest chain of calls."""
        return max(map(sum, zip(self.heads, self.output_tokens, self.tails, strict=True)))


@dataclass(frozen=True)
class Bound:
    """Seconds; ``makespan_s`` is the bound, the others what it is made of."""

    arithmetic_s: float
    traffic_s: float
    critical_path_s: float
    num_steps: int

    @property
    def makespan_s(self) -> float:
        return max(self.arithmetic_s, self.traffic_s, self.critical_path_s)


def collect_calls(compiled: CompiledPlan, workflow: str, seed: int) -> Calls:
    """Makes every call of a workflow once, with the answers a simulation gives."""
    tokenizer = PieceTokenizer()
    model = FakeModel(tokenizer, output_lengths(workflow), seed)
    prompts: list[list[int]] = []
    outputs: list[list[int]] = []
    lengths: dict[Item, int] = {}
    items: list[Item] = []

    def answer(call: Call, operator: str, row: int) -> tuple[str, ...]:
        answers = model.answer(call)
        items.extend([(operator, row)] * len(answers))
        prompt = tokenizer.token_ids(_render(tokenizer, call))
        for output in answers:
            prompts.append(prompt)
            outputs.append(output.token_ids)
        lengths[operator, row] = max(len(output.token_ids) for output in answers)
        return tuple(output.text for output in answers)

    interpret(compiled, answer)
    paths = [_blocks(prompt) for prompt in prompts]
    uses = Counter(block for path in paths for block in path)
    written: set[int] = set()
    for prompt, output in zip(prompts, outputs, strict=True):
        written.update(_blocks([*prompt, *output[:-1]])[len(prompt) // BLOCK_SIZE :])
    heads, tails = _chains(compiled, lengths)
    return Calls(
        [len(prompt) for prompt in prompts],
        [sum(BLOCK_SIZE / uses[block] for block in path) for path in paths],
        [len(output) for output in outputs],
        sum(block not in written for block in uses) * BLOCK_SIZE,
        [heads[item] for item in items],
        [tails[item] for item in items],
    )


def lower_bound(calls: Calls, cost: RooflineModel, num_kv_tokens: int | None = None) -> Bound:
    """Returns the bound for one engine, whose KV cache is the device's unless given."""
    num_kv_tokens = num_kv_tokens or cost.kv_capacity_tokens
    device, shape = cost.device, cost.shape
    num_output = sum(calls.output_tokens)
    context = sum(_held(calls.prompt_tokens, calls.output_tokens))
    held = np.array(_held(calls.own_tokens, calls.output_tokens))
    num_decodes = num_output - len(calls.output_tokens)
    num_steps = max(
        calls.critical_tokens,
        _windows(np.array(calls.heads), np.array(calls.tails), held / num_kv_tokens),
        -(-num_decodes // MAX_NUM_SEQS),
    )
    # As in the cost model: a step takes the longer of both, so all steps take at least each sum.
    overhead_s = device.step_overhead_ms / 1e3
    flops = 2.0 * shape.active_parameters * (calls.num_new_tokens + num_decodes)
    flops += shape.attention_flops(1, context)
    compute_s = flops / (device.flops * device.flops_ratio)
    read = num_steps * shape.weight_bytes + context * shape.kv_bytes_per_token
    read_s = read / (device.bandwidth * device.bandwidth_ratio)
    weights_s = shape.weight_bytes / (device.bandwidth * device.bandwidth_ratio)
    return Bound(
        num_steps * overhead_s + compute_s,
        num_steps * overhead_s + read_s,
        calls.critical_tokens * (overhead_s + weights_s),
        num_steps,
    )


def bounds(setting: Setting) -> dict[str, tuple[Calls, Bound]]:
    """Returns the calls and the bound ``as written`` and ``optimized`` by the plan rules."""
    cost = RooflineModel.preset(setting.device, setting.model)
    written = setting.workload().compile()
    variants = {"as written": written, "optimized": optimize(written, Switches()).compiled}
    num_kv_tokens = setting.num_blocks * BLOCK_SIZE if setting.num_blocks else None
    result = {}
    for name, compiled in variants.items():
        calls = collect_calls(compiled, setting.workflow, setting.seed)
        result[name] = calls, lower_bound(calls, cost, num_kv_tokens)
    return result


def _blocks(tokens: Sequence[int]) -> list[int]:
    path, prefix = [], 0
    for start in range(0, len(tokens) - BLOCK_SIZE + 1, BLOCK_SIZE):
        prefix = hash((prefix, *tokens[start : start + BLOCK_SIZE]))
        path.append(prefix)
    return path


def _held(prompt_tokens: Sequence[float], output_tokens: Sequence[int]) -> list[float]:
    """Token-steps per answer. A prefill gives the first token; every other one is a decode."""
    return [
        (output - 1) * prompt + output * (output - 1) // 2
        for prompt, output in zip(prompt_tokens, output_tokens, strict=True)
    ]


def _windows(heads: np.ndarray, tails: np.ndarray, steps: np.ndarray) -> int:
    """Returns the most steps any window makes: shortest head, what is inside, shortest tail."""
    quantiles = np.linspace(0, 1, 64)
    longest = 0
    for head in np.unique(np.quantile(heads, quantiles, method="nearest")):
        for tail in np.unique(np.quantile(tails, quantiles, method="nearest")):
            inside = steps[(heads >= head) & (tails >= tail)]
            if inside.size:
                longest = max(longest, int(head + tail) + math.ceil(inside.sum()))
    return longest


def _chains(
    compiled: CompiledPlan, lengths: dict[Item, int]
) -> tuple[dict[Item, int], dict[Item, int]]:
    """Returns the output tokens on the longest chains before and after every row of an operator."""
    heads: dict[Item, int] = {}
    tails: dict[Item, int] = {}
    reads: dict[Item, Sequence[Item]] = {}
    for operator in compiled.plan.operators:
        for row in range(compiled.rows.num_rows(operator.name)):
            item = operator.name, row
            reads[item] = compiled.rows.dependencies(*item)
            heads[item] = max((heads[one] + lengths.get(one, 0) for one in reads[item]), default=0)
    for item in reversed(reads):
        tail = tails.setdefault(item, 0) + lengths.get(item, 0)
        for one in reads[item]:
            tails[one] = max(tails.get(one, 0), tail)
    return heads, tails


def _render(tokenizer: PieceTokenizer, call: Call) -> str:
    if call.prompt is not None:
        return tokenizer.render_completion(call.prompt)
    messages = [{"role": role, "content": content} for role, content in call.messages]
    return tokenizer.render_chat(messages, add_reply=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints one line per workflow and variant."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lower_bound",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--workflow", nargs="+", default=["trading-8b"], choices=list(WORKFLOWS), metavar="NAME")
    add("--rows", type=int, help="rows of the batch; the workflow's own number by default")
    agents = parser.add_mutually_exclusive_group()
    agents.add_argument("--distinct", action="store_true", help="agents that are all different")
    agents.add_argument("--both", action="store_true", help="as published, and all different")
    add("--device", default="H100-80GB", choices=[name for name in DEVICES if name != "cpu"])
    add("--model", default="Qwen3-8B", choices=list(MODELS))
    add("--blocks", type=int, help="KV blocks of the engine, instead of the device's memory")
    add("--seed", type=int, default=0)
    add("--output", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    results, lines = [], []
    for workflow in options.workflow:
        for is_distinct in (False, True) if options.both else (options.distinct,):
            setting = Setting(
                workflow,
                rows=options.rows,
                is_distinct=is_distinct,
                device=options.device,
                model=options.model,
                num_blocks=options.blocks,
                seed=options.seed,
            )
            found = bounds(setting)
            results.append(_content(setting, found))
            described = _describe(setting, found)
            print("\n".join(described), flush=True)
            lines += described
    if options.output is not None:
        content = {"environment": environment(), "results": results, "summary": lines}
        write_results(options.output, content)


def _content(setting: Setting, found: dict[str, tuple[Calls, Bound]]) -> dict[str, Any]:
    seconds = {name: {**asdict(b), "makespan_s": b.makespan_s} for name, (_, b) in found.items()}
    return {"setting": asdict(setting), "bounds": seconds}


def _describe(setting: Setting, found: dict[str, tuple[Calls, Bound]]) -> list[str]:
    return [
        setting.title(),
        *(
            f"  {name}: at least {bound.makespan_s:.1f} s (arithmetic {bound.arithmetic_s:.1f}, "
            f"traffic {bound.traffic_s:.1f}, critical path {bound.critical_path_s:.1f}); "
            f"{len(calls.output_tokens)} answers, {bound.num_steps} steps, prefill "
            f"{calls.num_new_tokens / 1e3:.0f}k, output {sum(calls.output_tokens) / 1e3:.0f}k"
            for name, (calls, bound) in found.items()
        ),
    ]


if __name__ == "__main__":
    main()
