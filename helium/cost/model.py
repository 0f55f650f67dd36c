"""Cost models: what a call costs an engine, and how long its readers must wait.

Source: Helium, §5 and App. B for ``TokenStepModel``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from helium.errors import ConfigError


class CostModel(Protocol):
    """Prices one call; all of it per call, in ``unit``. Pure functions.

    A *usage* is the share of an engine's time a call takes among the others of a full batch; calls
    on one engine add up. A *delay* is the time from the end of a call's usage to its last token
    when nothing shortens it: readers cannot start earlier.
    """

    @property
    def unit(self) -> str:
        """Unit of usages and delays, for people."""
        ...

    def usage(self, prefill_tokens: float, cached_tokens: float, output_tokens: float) -> float:
        """Returns a call's usage.

        Args:
            prefill_tokens: Prompt tokens to compute.
            cached_tokens: Prompt tokens before them that are in the cache.
            output_tokens: Tokens to generate.
        """
        ...

    def delay(self, prompt_tokens: float, output_tokens: float) -> float:
        """Returns the wait of a call's readers after its usage."""
        ...


@dataclass(frozen=True)
class TokenStepModel:
    """The paper's model: KV tokens held, times steps they are held, over the capacity.

    Usage is ``(len_out * u_p + len_out * (len_out + 1) / 2) / M`` with ``u_p`` the tokens not
    shared with the call before; delay is ``len_out``. Both in token steps.

    Attributes:
        kv_capacity_tokens: ``M``, tokens of KV cache of one engine. The default is that of
            Qwen3-8B on a 94 GB card, which the paper uses.
    """

    kv_capacity_tokens: int = 478_560

    def __post_init__(self) -> None:
        if self.kv_capacity_tokens < 1:
            raise ConfigError(
                f"kv_capacity_tokens must be 1 or more, got {self.kv_capacity_tokens}; give the "
                "engine's KV cache size in tokens"
            )

    @property
    def unit(self) -> str:
        return "steps"

    def usage(self, prefill_tokens: float, cached_tokens: float, output_tokens: float) -> float:
        held = output_tokens * (prefill_tokens + (output_tokens + 1) / 2)
        return held / self.kv_capacity_tokens

    def delay(self, prompt_tokens: float, output_tokens: float) -> float:
        return output_tokens
