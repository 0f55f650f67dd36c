"""The fewest prompt tokens that given calls take, were every common token computed once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from helium.templates.tokenizer import PromptTokenizer

Messages = Sequence[tuple[str, str]]


def least_prefill_tokens(calls: Iterable[tuple[Messages, str]], tokenizer: PromptTokenizer) -> int:
    """Returns how many prompt tokens an endless prefix cache without blocks would compute.

    Args:
        calls: Conversations with their answers, which later prompts may go on from; in the order in
            which they were answered.
    """
    root: dict[int, dict] = {}
    num_tokens = 0
    for messages, answer in calls:
        turns = [{"role": role, "content": text} for role, text in messages]
        prompt = tokenizer.render_chat(turns, add_reply=True)
        # The last token is always computed: its output is the first one of the answer.
        num_tokens += max(1, _insert(root, tokenizer.encode(prompt).token_ids))
        _insert(root, tokenizer.encode(prompt + answer).token_ids)
    return num_tokens


def _insert(root: dict[int, dict], token_ids: Sequence[int]) -> int:
    """Adds a path to a tree; returns how many of its nodes are new."""
    node, num_new = root, 0
    for token_id in token_ids:
        if token_id not in node:
            node[token_id] = {}
            num_new += 1
        node = node[token_id]
    return num_new
