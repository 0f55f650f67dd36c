"""Synthetic text of a given length: same seed, same text, in every process.

Lengths are in words; English runs at about 1.33 tokens per word.
"""

from __future__ import annotations

import random
import string

_SUBJECTS = (
    "the company", "the committee", "a recent survey", "the author", "this quarter", "the supplier",
    "an early draft", "the second group", "management", "the regulator", "our sample", "the market",
    "a careful reader", "the northern region", "the older model", "customer support",
    "the contract", "a small team", "the laboratory", "each participant",
)  # fmt: skip
_VERBS = (
    "reported", "expected", "compared", "revised", "questioned", "measured", "delayed", "confirmed",
    "described", "underlined", "reduced", "rejected", "improved", "disclosed", "estimated",
    "explained", "repeated", "tracked", "summarized", "overlooked",
)  # fmt: skip
_OBJECTS = (
    "operating costs", "a modest increase", "the original forecast", "several open issues",
    "long delivery times", "the quality of the material", "net revenue", "two earlier studies",
    "an unusual pattern", "the terms of payment", "higher volumes", "the missing evidence",
    "customer complaints", "the price of energy", "the main assumption", "free cash flow",
    "an alternative method", "the result of the vote", "inventory levels", "the first chapter",
)  # fmt: skip
_ENDINGS = (
    "in the previous year", "without further comment", "despite a weak season", "after the review",
    "for the third time", "by {number} percent", "to {number} million", "in section {number}",
    "across all {number} sites", "ahead of schedule", "under the new rules", "at lower margins",
    "because of one large order", "with limited data", "before the deadline", "on page {number}",
)  # fmt: skip
_INSTRUCTIONS = (
    "Read everything you are given about {topic} before you start to write.",
    "State the facts that matter first and say where in the material each of them comes from.",
    "Keep figures exactly as they are given, with their units and the period they refer to.",
    "When two sources disagree about {topic}, name both and say which one you trust more and why.",
    "Do not repeat the question, do not apologize and do not describe what you are about to do.",
    "Separate what the material says from what you conclude from it.",
    "If something needed for {topic} is missing, say so in one sentence instead of guessing.",
    "Prefer short sentences and plain words over jargon.",
    "Consider at least one explanation that speaks against your first impression.",
    "Weigh risks by how likely they are and by how much they would cost.",
    "Finish with a conclusion about {topic} that somebody else can act on.",
    "Use a numbered list only when the order of the points carries meaning.",
    "Mention trends only if they span more than a single period.",
    "Avoid absolute statements unless the evidence leaves no room for doubt.",
    "Explain every abbreviation the first time you use it.",
    "Treat all numbers about {topic} as unaudited unless told otherwise.",
    "Leave out greetings, headings and closing remarks.",
    "Check each calculation once more before you include its result.",
    "Point out what would change your mind about {topic}.",
    "Write for a reader who knows the field but has not seen this material.",
)


def prose(num_words: int, seed: str) -> str:
    """Returns about a report's worth of English sentences, exactly ``num_words`` words."""
    rng = random.Random(seed)
    words: list[str] = []
    while len(words) < num_words:
        ending = rng.choice(_ENDINGS).format(number=rng.randrange(2, 980))
        sentence = f"{rng.choice(_SUBJECTS)} {rng.choice(_VERBS)} {rng.choice(_OBJECTS)} {ending}."
        words += (sentence[0].upper() + sentence[1:]).split()
    return " ".join(words[:num_words])


def instructions(lead: str, num_words: int, topic: str = "the subject", seed: str = "") -> str:
    """Returns a prompt that opens with ``lead`` and gives advice up to ``num_words`` words.

    Prompts with different leads, topics or seeds share no more than chance beyond their leads. A
    lead longer than ``num_words`` is kept whole.
    """
    rng = random.Random(f"{lead}|{topic}|{seed}")
    words = lead.split()
    pool: list[str] = []
    while len(words) < num_words:
        pool = pool or rng.sample(_INSTRUCTIONS, len(_INSTRUCTIONS))
        words += pool.pop().format(topic=topic).split()
    return " ".join(words[: max(num_words, len(lead.split()))])


def multiple_choice(num_words: int, seed: str) -> str:
    """Returns a question with four options, ``num_words`` words in all, at least 20."""
    option_words = max(2, num_words // 8)
    stem = prose(max(8, num_words - 4 * (option_words + 1)), seed)
    options = (
        f"{letter}. {prose(option_words, f'{seed}/{letter}')}"
        for letter in string.ascii_uppercase[:4]
    )
    return "\n".join([stem, *options])
