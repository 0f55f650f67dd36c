"""Iterative refinement: a summary grows chunk by chunk. Source: Helium, §7."""

from __future__ import annotations

from benchmarks.workflows.text import instructions, prose
from benchmarks.workflows.workload import Workload, column, scaled
from helium import graphs, ops
from helium.plan.operators import Sampling

NUM_CHUNKS = 6


def build_amazon(
    size: int = 200,
    *,
    distinct: bool = False,
    seed: int = 0,
    scale: float = 1.0,
    max_tokens: int = 512,
) -> Workload:
    """A chain of six calls over six chunks of reviews: 6 LLM operators, all distinct.

    Args:
        size: Items, each with six chunks of reviews.
        distinct: Changes nothing; the agents are distinct as published.
        scale: Factor on all lengths of texts.
    """
    sampling = Sampling(max_tokens=max_tokens)
    system = ops.Msg("system", instructions("You summarize product reviews.", scaled(5, scale)))
    start = instructions("Summarize these reviews.", scaled(132, scale), "the reviews")
    extend = instructions("Extend the summary with more reviews.", scaled(121, scale), "the item")
    chunks = [ops.placeholder(f"chunk_{number}") for number in range(1, NUM_CHUNKS + 1)]
    message = ops.Msg("user", [start, "\nReviews: ", chunks[0]])
    summary = ops.llm([system, message], name="summary_1", sampling=sampling)
    for number, chunk in enumerate(chunks[1:], start=2):
        message = ops.Msg("user", [extend, "\nSummary: ", summary, "\nReviews: ", chunk])
        summary = ops.llm([system, message], name=f"summary_{number}", sampling=sampling)
    batch = review_chunks(size, seed, scaled(676, scale))
    return Workload("iterative-amazon", graphs.build({"summary": summary}), batch)


def review_chunks(size: int, seed: int, num_words: int) -> dict[str, list[str]]:
    """Returns the columns ``chunk_1`` to ``chunk_6``."""
    return {
        f"chunk_{number}": column(
            size, lambda row, number=number: prose(num_words, f"reviews/{seed}/{row}/{number}")
        )
        for number in range(1, NUM_CHUNKS + 1)
    }
