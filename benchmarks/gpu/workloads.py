"""The kit's workloads: published shapes, cut to seconds; texts in words of one token each."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.model_folder import TOKENS_PER_WORD, words_of
from benchmarks.workflows import WORKFLOWS, Workload
from helium.plan.calls import Call
from helium.plan.interpret import interpret

SMALL = (
    {"label": "trading-8b", "workflow": "trading-8b", "rows": 8, "scale": 0.5, "max_tokens": 128},
    {"label": "mapreduce-mmlu", "workflow": "mapreduce-mmlu", "rows": 64, "scale": 1.0,
     "max_tokens": 128},
)  # fmt: skip
"""``scale`` is of lengths in tokens; ``max_tokens`` shortens every answer in proportion."""

TINY = (
    {"label": "trading-8b", "workflow": "trading-8b", "rows": 2, "scale": 0.02, "max_tokens": 8},
    {"label": "mapreduce-mmlu", "workflow": "mapreduce-mmlu", "rows": 4, "scale": 0.3,
     "max_tokens": 8},
)  # fmt: skip
"""For trying the program without a GPU."""


def build(entry: dict[str, Any]) -> Workload:
    """Returns the workload that an entry describes."""
    return WORKFLOWS[entry["workflow"]](
        size=entry["rows"],
        distinct=entry.get("distinct", False),
        seed=entry.get("seed", 0),
        scale=entry["scale"] * TOKENS_PER_WORD,
        max_tokens=entry["max_tokens"],
    )


def all_words(workloads: list[Workload]) -> list[str]:
    """Returns every word of the workloads' prompts, the answers' aside."""
    found: dict[str, None] = {}

    def answer(call: Call, operator: str, row: int) -> tuple[str, ...]:
        texts = [content for _, content in call.messages] or [call.prompt or ""]
        found.update(dict.fromkeys(words_of(texts)))
        return ("",) * call.sampling.n

    for workload in workloads:
        interpret(workload.compile(), answer)
    return list(found)
