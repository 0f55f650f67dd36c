"""How many tokens a step may schedule, so that prefill does not hold up decoding.

A decode step is bound by memory traffic: the weights and the KV of every sequence are read for one
token each, while the arithmetic units idle. Prompt tokens up to the device's balance point ride
along for nothing; each one beyond it makes every decoding sequence wait. Upstream fills a step up
to its budget, which brings one first token forward at the expense of all running answers.

This rests on arithmetic and traffic of a step overlapping, as the roofline of ``helium.cost`` has
it: simulated Trading-8b, 16 rows of distinct agents, then takes 268 s instead of 367 s. Were their
times to add up, prefill would cost the same wherever it is done, and pacing would only add steps:
16 rows as published would take 259 s instead of 257 s.
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
