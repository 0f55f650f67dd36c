"""The demo: a Map-Reduce workflow on a real model, with Helium on and off.

    python -m vllm_helium.demo

Three experts answer each question from their point of view; a summary and a title are made of their
notes. The model is the small one that comes along (135M parameters): its answers are simple, its
token counts are real.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from typing import TYPE_CHECKING

from helium import graphs, ops
from helium.dsl.graph import Graph
from helium.runtime import RunResult
from vllm_helium.models.smollm2 import ensure_smollm2

if TYPE_CHECKING:
    from vllm import LLM

EXPERT = (
    "You are one of several experts who answer the same question, each from one point of view. You "
    "write one clear and short sentence. Use simple words and stay on the point of view you are "
    "given."
)
QUESTIONS = {
    "Why are trees important for cities?": ("health", "climate", "wildlife"),
    "Why is sleep important?": ("memory", "mood", "the body"),
    "Why should people drink enough water?": ("skin", "digestion", "sport"),
    "Why is reading books good for children?": ("language", "imagination", "family"),
    "How does the internet change education?": ("students", "teachers", "costs"),
    "Why are bees important?": ("food", "farmers", "flowers"),
    "What are the benefits of public transport?": ("traffic", "air quality", "health"),
    "Why is recycling important?": ("nature", "energy", "the future"),
}


def build_graph() -> Graph:
    """Builds the workflow: three experts per question, then a summary and a title of their notes.

    The prompts suit a model of 135M parameters: it explains and summarizes, it cannot judge.
    """
    question = ops.placeholder("question")
    notes = [
        ops.llm(
            [
                ops.Msg("system", EXPERT),
                ops.Msg(
                    "user",
                    [question, " Explain it with regard to ", aspect, " in one sentence."],
                ),
            ],
            name=f"expert_{number}",
            max_tokens=64,
            stop=("\n",),
        )
        for number, aspect in enumerate(
            (ops.placeholder(f"aspect_{number}") for number in (1, 2, 3)), start=1
        )
    ]
    text = [notes[0], " ", notes[1], " ", notes[2], "\n\n"]
    summary = ops.llm(
        [ops.Msg("user", [*text, "Summarize the text above in two sentences."])],
        name="summary",
        max_tokens=80,
    )
    title = ops.llm(
        [ops.Msg("user", [*text, "Write a short title for the text above."])],
        name="title",
        max_tokens=16,
        stop=("\n",),
    )
    return graphs.build({"answer": summary, "title": title})


def make_llm(model: str, is_on: bool) -> LLM:
    """Builds the engine, as anybody would; ``helium=True`` is the whole difference."""
    from vllm import LLM

    options = {"helium": True} if is_on else {}
    return LLM(
        model,
        dtype="float32",
        enforce_eager=True,
        max_model_len=4096,
        max_num_seqs=16,
        block_size=32,
        kv_cache_memory_bytes=1 << 30,
        **options,
    )


def run(model: str, graph: Graph, is_on: bool) -> tuple[RunResult, float]:
    """Runs the workflow on a fresh engine; returns its result and the wall time in seconds."""
    llm = make_llm(model, is_on)
    llm.generate("Warm up.", use_tqdm=False)
    started = time.perf_counter()
    inputs = {"question": list(QUESTIONS)}
    for number, aspects in enumerate(zip(*QUESTIONS.values(), strict=True), start=1):
        inputs[f"aspect_{number}"] = list(aspects)
    result = llm.run_workflow(graph, inputs, workflow=f"Helium {'on' if is_on else 'off'}")
    elapsed_s = time.perf_counter() - started
    del llm
    gc.collect()
    return result, elapsed_s


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="model folder; default: the small model from PyPI")
    options = parser.parse_args()
    # One process and quiet logs, so that the output is the demo's.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    model = options.model or str(ensure_smollm2())
    graph = build_graph()
    on, on_s = run(model, graph, True)
    off, off_s = run(model, graph, False)
    for question, title, answer in zip(
        QUESTIONS, on.outputs["title"], on.outputs["answer"], strict=True
    ):
        print(f"\n{question}\n  {title}\n  {answer}")
    print(f"\n{'':12}{'calls':>8}{'prompt':>9}{'cached':>9}{'computed':>10}{'output':>9}{'s':>8}")
    for label, result, elapsed_s in (("Helium on", on, on_s), ("Helium off", off, off_s)):
        total = result.total
        print(
            f"{label:12}{total.num_calls:8}{total.num_prompt_tokens:9}{total.num_cached_tokens:9}"
            f"{total.num_computed_tokens:10}{total.num_output_tokens:9}{elapsed_s:8.1f}"
        )
    is_equal = on.outputs == off.outputs
    print(f"\nanswers equal: {'yes' if is_equal else 'NO'}")
    if on.failures or off.failures or not is_equal:
        raise SystemExit(f"failed calls: {on.failures + off.failures}, equal: {is_equal}")


if __name__ == "__main__":
    main()
