"""One LLM call with every hole filled: what a prompt cache is asked for and a model answers."""

from __future__ import annotations

import msgspec

from helium.plan.operators import Sampling


class Call(msgspec.Struct, frozen=True, gc=False):
    """The whole content of a call; equal deterministic calls have equal outputs.

    Attributes:
        messages: (role, content) pairs of the whole conversation, oldest first.
        prompt: The text of a completion; ``None`` for a chat.
        model: Model or LoRA adapter; ``None`` is the engine's default.
    """

    messages: tuple[tuple[str, str], ...]
    prompt: str | None
    sampling: Sampling
    model: str | None
