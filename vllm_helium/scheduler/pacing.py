"""How many tokens a step may schedule, so that prefill does not hold up decoding.

A decode step is bound by memory traffic: the weights and the KV of every sequence are read for one
token each, while the arithmetic units idle. Prompt tokens up to the device's balance point ride
along for nothing; each one beyond it makes every decoding sequence wait. Upstream fills a step up
to its budget, which brings one first token forward at the expense of all running answers.

The assumption is that arithmetic and traffic of a step overlap (a roofline). Where they do not,
pacing gains less: prefill costs the same wherever it is done, and is only spread out.
"""

from __future__ import annotations


def step_budget(
    max_tokens: int, num_decoding: int, tokens_per_decode: int, prefill_tokens: int
) -> int:
    """Returns the token budget of one step; upstream's while nothing decodes.

    Args:
        max_tokens: Upstream's budget, never exceeded.
        num_decoding: Running requests whose prompt is computed.
        tokens_per_decode: Tokens each of them schedules in a step, drafts included.
        prefill_tokens: Prompt tokens beside them; 0 for upstream's budget.
    """
    if not prefill_tokens or num_decoding <= 0:
        return max_tokens
    return min(max_tokens, num_decoding * tokens_per_decode + prefill_tokens)
