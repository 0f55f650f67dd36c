"""What an operator may choose about the prefix cache."""

from __future__ import annotations

from dataclasses import dataclass

from helium.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PrefixCacheOptions:
    """Sizes and shares of the prefix cache.

    Attributes:
        min_partial_tokens: Shortest run inside a block worth reusing, in tokens; a reuse copies one
            block. ``0`` reuses whole blocks only. The default is half of the usual GPU block.
        prompt_tails: Whether the last, partial block of a prompt may be copied from once it is
            computed, instead of once its request has ended.
        lease_share: Largest share of all blocks that leases may hold.
        ordinary_share: Share of all blocks in which ordinary traffic competes by recency alone:
            plans may protect the rest, and what they protect beyond it goes first.
        max_runs: Plan runs whose pending uses are kept, and plans; beyond it the oldest run's
            blocks are no longer wanted: dead, or ordinary where others used them too.
    """

    min_partial_tokens: int = 8
    prompt_tails: bool = True
    lease_share: float = 0.3
    ordinary_share: float = 0.2
    max_runs: int = 1024

    def __post_init__(self) -> None:
        for name, low, high in (
            ("min_partial_tokens", 0, 1 << 16),
            ("lease_share", 0, 1),
            ("ordinary_share", 0, 1),
            ("max_runs", 1, 1 << 20),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(
                    f"prefix cache: `{name}` must be in [{low}, {high}], got {value!r}"
                )
