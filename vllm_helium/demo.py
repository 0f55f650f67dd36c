"""The demo: a Map-Reduce workflow on a real model, with Helium on and off.

    python -m vllm_helium.demo

Several experts answer each question about a text, a summary makes one answer of theirs. The model
is the small one that comes along (135M parameters): its answers are simple, its token counts real.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from typing import TYPE_CHECKING

from helium import graphs, ops
from helium.dsl.graph import Graph
from helium.plan.operators import Sampling
from helium.runtime import RunResult
from vllm_helium.models.smollm2 import ensure_smollm2

if TYPE_CHECKING:
    from vllm import LLM

BEES = (
    "Honey bees live in colonies of up to sixty thousand workers and one queen. Workers collect "
    "nectar from flowers and carry it home in a second stomach. In the hive they pass it from bee "
    "to bee and fan it with their wings until most of the water is gone, and what is left is "
    "honey. A worker that has found a good field dances on the comb: the direction of the dance "
    "tells the direction of the flowers, and its length tells how far away they are."
)
TIDES = (
    "The pull of the moon raises two bulges in the oceans, one on the side that faces the moon and "
    "one on the far side. As the Earth turns, most coasts pass through both bulges, so "
    "they see two high tides a day, a little more than twelve hours apart. When the sun and the "
    "moon pull along one line, at full moon and new moon, the tides are higher than usual and are "
    "called spring tides."
)
ROWS = (
    (BEES, "How do bees make honey?"),
    (BEES, "How does a bee tell others where flowers are?"),
    (BEES, "How many queens does a colony have?"),
    (TIDES, "Why are there two high tides a day?"),
    (TIDES, "What is a spring tide?"),
    (TIDES, "What pulls the oceans?"),
)
EXPERTS = {
    "reader": "Quote the sentence of the text that answers the question.",
    "teacher": "Answer the question in one simple sentence.",
    "editor": "Answer the question in a few words.",
    "second_reader": "Quote the sentence of the text that answers the question.",
}


def build_graph(max_tokens: int) -> Graph:
    """Builds the workflow: four experts per question (two of them equal), then a summary."""
    passage, question = ops.placeholder("passage"), ops.placeholder("question")
    sampling = Sampling(max_tokens=max_tokens)
    context = ["Text: ", passage, "\nQuestion: ", question, "\n"]
    notes = [
        ops.llm([ops.Msg("user", [*context, role])], name=name, sampling=sampling)
        for name, role in EXPERTS.items()
    ]
    parts = list(context)
    for number, note in enumerate(notes, start=1):
        parts += [f"Note {number}: ", note, "\n"]
    parts.append("Write one short answer to the question from the notes.")
    answer = ops.llm([ops.Msg("user", parts)], name="summary", sampling=sampling)
    return graphs.build({"answer": answer})


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
    inputs = {"passage": [row[0] for row in ROWS], "question": [row[1] for row in ROWS]}
    result = llm.run_workflow(graph, inputs, workflow=f"Helium {'on' if is_on else 'off'}")
    elapsed_s = time.perf_counter() - started
    del llm
    gc.collect()
    return result, elapsed_s


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="model folder; default: the small model from PyPI")
    parser.add_argument("--max-tokens", type=int, default=48, help="output tokens per call")
    options = parser.parse_args()
    # One process and quiet logs, so that the output is the demo's.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    model = options.model or str(ensure_smollm2())
    graph = build_graph(options.max_tokens)
    on, on_s = run(model, graph, True)
    off, off_s = run(model, graph, False)
    for (_, question), answer in zip(ROWS, on.outputs["answer"], strict=True):
        print(f"\nQ: {question}\nA: {answer}")
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
