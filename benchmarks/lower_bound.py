"""How fast any scheduler could be: a lower bound on the makespan of a simulated setting.

    python -m benchmarks.lower_bound --workflow trading-8b --rows 16

The bound follows from the cost model and the calls themselves, whatever their order. It is the
largest of three times, each of which no schedule on one engine can beat:

* *arithmetic*: every distinct block of prompt is computed once and every output token once;
* *traffic*: every output token reads the KV of its whole context; every step reads the weights;
* *critical path*: the outputs of the longest chain of calls, one token per step.

Steps are at least as many as the KV cache makes them: a call holds its context for as many steps as
it decodes, its part of a block that n prompts begin with being one n-th, and all calls of a step
must fit. It is optimistic: whoever can share decodes together, prefill needs no room, and nothing
but the longest chain waits for anything.
"""

from __future__ import annotations

import argparse
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.output_lengths import output_lengths
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


@dataclass(frozen=True)
class Calls:
    """What is left of the calls of a workflow.

    Attributes:
        prompt_tokens: Per answer.
        own_tokens: KV tokens a prompt takes at least, per answer: its part of what it shares.
        output_tokens: Per answer.
        num_new_tokens: Tokens of distinct prompt blocks that are no call's output.
        critical_tokens: Output tokens on the longest chain.
    """

    prompt_tokens: Sequence[int]
    own_tokens: Sequence[float]
    output_tokens: Sequence[int]
    num_new_tokens: int
    critical_tokens: int


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
    lengths: dict[tuple[str, int], int] = {}

    def answer(call: Call, operator: str, row: int) -> tuple[str, ...]:
        answers = model.answer(call)
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
    return Calls(
        [len(prompt) for prompt in prompts],
        [sum(BLOCK_SIZE / uses[block] for block in path) for path in paths],
        [len(output) for output in outputs],
        sum(block not in written for block in uses) * BLOCK_SIZE,
        _longest_chain(compiled, lengths),
    )


def lower_bound(calls: Calls, cost: RooflineModel) -> Bound:
    """Returns the bound for one engine."""
    device, shape = cost.device, cost.shape
    num_output = sum(calls.output_tokens)
    # A prefill gives the first token; every other one is a decode that holds the call's own KV.
    held, context = 0.0, 0
    for prompt, own, output in zip(
        calls.prompt_tokens, calls.own_tokens, calls.output_tokens, strict=True
    ):
        grown = output * (output - 1) // 2
        held += (output - 1) * own + grown
        context += (output - 1) * prompt + grown
    num_decodes = num_output - len(calls.output_tokens)
    num_steps = max(
        calls.critical_tokens,
        math.ceil(held / cost.kv_capacity_tokens),
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
    result = {}
    for name, compiled in variants.items():
        calls = collect_calls(compiled, setting.workflow, setting.seed)
        result[name] = calls, lower_bound(calls, cost)
    return result


def _blocks(tokens: Sequence[int]) -> list[int]:
    path, prefix = [], 0
    for start in range(0, len(tokens) - BLOCK_SIZE + 1, BLOCK_SIZE):
        prefix = hash((prefix, *tokens[start : start + BLOCK_SIZE]))
        path.append(prefix)
    return path


def _longest_chain(compiled: CompiledPlan, lengths: dict[tuple[str, int], int]) -> int:
    chains: dict[tuple[str, int], int] = {}
    for operator in compiled.plan.operators:
        for row in range(compiled.rows.num_rows(operator.name)):
            before = compiled.rows.dependencies(operator.name, row)
            longest = max((chains[dependency] for dependency in before), default=0)
            chains[operator.name, row] = longest + lengths.get((operator.name, row), 0)
    return max(chains.values(), default=0)


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
    add("--distinct", action="store_true", help="agents that are all different")
    add("--device", default="H100-80GB", choices=[name for name in DEVICES if name != "cpu"])
    add("--model", default="Qwen3-8B", choices=list(MODELS))
    add("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for workflow in options.workflow:
        setting = Setting(
            workflow,
            rows=options.rows,
            is_distinct=options.distinct,
            device=options.device,
            model=options.model,
            seed=options.seed,
        )
        print(setting.title())
        for name, (calls, bound) in bounds(setting).items():
            print(
                f"  {name}: {bound.makespan_s:.1f} s (arithmetic {bound.arithmetic_s:.1f}, traffic "
                f"{bound.traffic_s:.1f}, critical path {bound.critical_path_s:.1f}); "
                f"{len(calls.output_tokens)} answers, {bound.num_steps} steps, prefill "
                f"{calls.num_new_tokens / 1e3:.0f}k, output {sum(calls.output_tokens) / 1e3:.0f}k"
            )


if __name__ == "__main__":
    main()
