"""Ordinary traffic: seeded conversations of several turns, with lengths like ShareGPT's.

Nobody announces anything here: no plan, no context. A turn's prompt is the whole conversation so
far, so most of it has been computed before; some conversations open with one of a few system
prompts.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

NUM_SYSTEM_PROMPTS = 4
SYSTEM_PROMPT_SHARE = 0.4
"""Share of the conversations that open with a system prompt."""
MEAN_TURNS = 3.5
MAX_TURNS = 10
QUESTION = (45.0, 1.1)
ANSWER = (180.0, 0.8)
SYSTEM = (120.0, 0.6)
"""Median in tokens, and standard deviation of the logarithm, of log-normal lengths."""
LONGEST = 1_024
"""Tokens of the longest question, answer or system prompt."""


@dataclass(frozen=True)
class Turn:
    """A question and how long its answer is.

    Attributes:
        question: Token ids.
        answer_tokens: Tokens of the answer, which is not known before it is made.
        think_s: Seconds the user takes before asking.
    """

    question: tuple[int, ...]
    answer_tokens: int
    think_s: float


@dataclass(frozen=True)
class Conversation:
    """A user's turns, one after the other.

    Attributes:
        arrival_s: Seconds from the start until the first turn is thought of.
    """

    number: int
    arrival_s: float
    turns: tuple[Turn, ...]

    def num_tokens(self) -> int:
        """Tokens once the last answer is there."""
        return sum(len(turn.question) + turn.answer_tokens for turn in self.turns)


def conversations(
    count: int,
    *,
    seed: int,
    per_second: float,
    mean_think_s: float,
    max_tokens: int,
    scale: float = 1.0,
    vocab: tuple[int, int] = (10, 250),
) -> list[Conversation]:
    """Draws conversations in order of arrival.

    Args:
        per_second: Conversations that start in a second, on average (Poisson).
        mean_think_s: Mean of the users' exponential pauses, in seconds; 0 for none.
        max_tokens: Longest conversation, answers included; later turns are left out.
        scale: Factor on all lengths.
        vocab: Token ids to draw from, the upper bound excluded.
    """
    generator = random.Random(seed)

    def length(distribution: tuple[float, float]) -> int:
        median, spread = distribution
        drawn = generator.lognormvariate(math.log(median), spread)
        return max(2, round(scale * min(drawn, LONGEST)))

    def text(num_tokens: int) -> tuple[int, ...]:
        return tuple(generator.choices(range(*vocab), k=num_tokens))

    heads = [text(length(SYSTEM)) for _ in range(NUM_SYSTEM_PROMPTS)]
    found, now = [], 0.0
    for number in range(count):
        now += generator.expovariate(per_second)
        head = generator.choice(heads) if generator.random() < SYSTEM_PROMPT_SHARE else ()
        turns: list[Turn] = []
        num_tokens = 0
        for _ in range(_num_turns(generator)):
            question = (() if turns else head) + text(length(QUESTION))
            answer_tokens = length(ANSWER)
            think_s = generator.expovariate(1 / mean_think_s) if mean_think_s and turns else 0.0
            num_tokens += len(question) + answer_tokens
            if turns and num_tokens > max_tokens:
                break
            turns.append(Turn(question, answer_tokens, think_s))
        found.append(Conversation(number, now, tuple(turns)))
    return found


def _num_turns(generator: random.Random) -> int:
    """Geometric with mean ``MEAN_TURNS``, cut at ``MAX_TURNS``."""
    turns = 1
    while turns < MAX_TURNS and generator.random() > 1 / MEAN_TURNS:
        turns += 1
    return turns


def made_up_answer(conversation: int, turn: int, num_tokens: int) -> list[int]:
    """What a model that is not there says; the same for equal arguments."""
    generator = random.Random(f"{conversation}/{turn}")
    return generator.choices(range(10, 250), k=num_tokens)


def turn_ids(count: Iterator[int], conversation: int, turn: int) -> str:
    """A request id that is never used again."""
    return f"c{conversation}-t{turn}-{next(count)}"
