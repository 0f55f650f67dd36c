"""The prefix-sharing sweep: debates whose prompts share more and more. Source: Helium, §7.

Six profiles of a debate of three agents over two rounds. All agents share a system prompt and the
context of their row, so that the profiles differ in how much of a prompt is shared and in how long
answers are.
"""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.workflows.debate import debate
from benchmarks.workflows.text import prose
from benchmarks.workflows.workload import Workload, column, scaled
from helium import graphs, ops
from helium.plan.operators import Sampling

TOKENS_PER_WORD = 1.33
"""Of English text under tokenizers in use."""


class Profile(NamedTuple):
    """Lengths in tokens; ``system`` and ``context`` are shared."""

    system: int
    context: int
    question: int
    output: int


PROFILES = {
    "p1": Profile(1_024, 128, 128, 64),
    "p2": Profile(1_024, 512, 512, 256),
    "p3": Profile(1_024, 1_024, 1_024, 512),
    "p4": Profile(2_048, 256, 256, 128),
    "p5": Profile(2_048, 1_024, 1_024, 512),
    "p6": Profile(2_048, 2_048, 2_048, 1_024),
}


def build(
    size: int = 100,
    *,
    profile: str,
    distinct: bool = False,
    seed: int = 0,
    scale: float = 1.0,
    max_tokens: int | None = None,
) -> Workload:
    """Three agents, two rounds: 6 LLM operators, all distinct.

    Args:
        size: Questions, each with a context of its own.
        profile: One of ``PROFILES``.
        distinct: Changes nothing; the agents are distinct as published.
        scale: Factor on all lengths of texts.
        max_tokens: Limit of every answer; the profile's by default.
    """
    lengths = PROFILES[profile]

    def words(num_tokens: int) -> int:
        return scaled(round(num_tokens / TOKENS_PER_WORD), scale)

    output = scaled(lengths.output, scale) if max_tokens is None else max_tokens
    parts = [ops.placeholder("context"), "\nQuestion: ", ops.placeholder("question")]
    answers = debate(parts, Sampling(max_tokens=output), scale, words(lengths.system))
    outputs = {f"answer_{agent}": node for agent, node in enumerate(answers, start=1)}
    batch = {
        name: column(
            size,
            lambda row, name=name, num_words=num_words: prose(
                num_words, f"sharing/{seed}/{name}/{row}"
            ),
        )
        for name, num_words in (
            ("context", words(lengths.context)),
            ("question", words(lengths.question)),
        )
    }
    return Workload(f"sharing-{profile}", graphs.build(outputs), batch)
