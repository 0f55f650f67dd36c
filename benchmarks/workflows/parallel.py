"""Parallel chains: experts read chunk by chunk, a writer joins them. Source: Helium, §7."""

from __future__ import annotations

from benchmarks.workflows.iterative import NUM_CHUNKS, review_chunks
from benchmarks.workflows.text import instructions, prose
from benchmarks.workflows.workload import Workload, column, scaled
from helium import graphs, ops
from helium.dsl.node import Node
from helium.plan.operators import Sampling

_EXPERTS = {
    "quality": 150, "price": 154, "delivery": 158, "design": 162, "durability": 166,
    "service": 170, "safety": 175,
}  # fmt: skip
"""Field of each expert -> words of its system prompt."""


def build_amazon(
    size: int = 100,
    *,
    distinct: bool = False,
    seed: int = 0,
    scale: float = 1.0,
    max_tokens: int = 512,
) -> Workload:
    """Seven experts with six extracts and a summary each, and a writer: 50 LLM operators.

    Args:
        size: Items, each with a description and six chunks of reviews.
        distinct: Changes nothing; the agents are distinct as published.
        scale: Factor on all lengths of texts.
    """
    sampling = Sampling(max_tokens=max_tokens)
    item = ops.placeholder("item")
    chunks = [ops.placeholder(f"chunk_{number}") for number in range(1, NUM_CHUNKS + 1)]
    summaries = []
    for field, num_words in _EXPERTS.items():
        with ops.scope(field):
            summaries.append(_expert(field, num_words, item, chunks, sampling, scale))
    system = instructions("You write buying guides.", scaled(186, scale), "the buying guide")
    task = instructions("Write a guide from these reports.", scaled(142, scale), "the guide")
    parts: list[str | Node] = [task]
    for field, summary in zip(_EXPERTS, summaries, strict=True):
        parts += [f"\nReport on {field}: ", summary]
    writer = ops.llm(
        [ops.Msg("system", system), ops.Msg("user", parts)], name="writer", sampling=sampling
    )
    batch = {
        "item": column(size, lambda row: prose(scaled(80, scale), f"item/{seed}/{row}")),
        **review_chunks(size, seed, scaled(820, scale)),
    }
    return Workload("parallel-amazon", graphs.build({"guide": writer}), batch)


def _expert(
    field: str,
    num_words: int,
    item: Node,
    chunks: list[Node],
    sampling: Sampling,
    scale: float,
) -> Node:
    topic = f"the {field} of the product"
    lead = f"You judge the {field} of products by what customers say."
    system = ops.Msg("system", instructions(lead, scaled(num_words, scale), topic))
    lead = f"Extract every remark on {field}."
    task = instructions(lead, scaled(101, scale), topic)
    extracts = []
    for number, chunk in enumerate(chunks, start=1):
        message = ops.Msg("user", [task, "\nItem: ", item, "\nReviews: ", chunk])
        extracts.append(ops.llm([system, message], name=f"extract_{number}", sampling=sampling))
    lead = f"Summarize your notes on {field}."
    parts: list[str | Node] = [instructions(lead, scaled(110, scale), topic)]
    for number, extract in enumerate(extracts, start=1):
        parts += [f"\nNotes {number}: ", extract]
    return ops.llm([system, ops.Msg("user", parts)], name="summary", sampling=sampling)
