"""What an operator may choose about the host tier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from helium.errors import ConfigError

STORE_STAGING_BYTES = 256 * 1024 * 1024
"""Device memory into which a step's stores are gathered, so that it may overwrite their blocks at
once: what one step of 640 prompt tokens evicts from an 8B model's cache, twice over."""


@dataclass(frozen=True, kw_only=True)
class HostTierOptions:
    """Sizes and bounds of the host tier.

    Attributes:
        num_slots: Blocks that host memory holds; 0 turns the tier off.
        max_step_blocks: Blocks loaded for requests in one step, on which running ones wait, and
            blocks prefetched in one step. A longer prefix is brought in over several steps, or at
            once where nothing else runs.
        min_load_blocks: Shortest run worth loading instead of computing it again.
        has_prefetch: Whether blocks come back ahead of their requests.
        block_bytes: One block of all layers on one worker.
        link_bytes_per_s: What the link moves in one direction, for estimates.
    """

    num_slots: int = 0
    max_step_blocks: int = 256
    min_load_blocks: int = 1
    has_prefetch: bool = True
    block_bytes: int = 1
    link_bytes_per_s: float = 25e9

    def __post_init__(self) -> None:
        for name, low in (("num_slots", 0), ("max_step_blocks", 1), ("min_load_blocks", 1)):
            value = getattr(self, name)
            if value < low:
                raise ConfigError(f"host tier: `{name}` must be {low} or more, got {value!r}")

    @property
    def load_s(self) -> float:
        """Seconds that the link takes for a block."""
        return self.block_bytes / self.link_bytes_per_s

    @property
    def num_staged_blocks(self) -> int:
        """Blocks a step stores without making the step wait for the link."""
        return max(1, STORE_STAGING_BYTES // self.block_bytes)

    @classmethod
    def of_sizes(
        cls, host_bytes: float, step_bytes: float, block_bytes: int, **options: Any
    ) -> HostTierOptions:
        """Turns sizes into numbers of blocks.

        Args:
            host_bytes: Host memory of one worker.
            step_bytes: What one step may load.
            block_bytes: One block of all layers on one worker.

        Raises:
            ConfigError: Not one block fits.
        """
        num_slots = int(host_bytes // block_bytes)
        if host_bytes > 0 and num_slots == 0:
            raise ConfigError(
                f"host_gib: {host_bytes:.0f} bytes hold no block of {block_bytes} bytes; raise it, "
                "or set 0 to turn the host tier off"
            )
        return cls(
            num_slots=num_slots,
            max_step_blocks=max(1, int(step_bytes // block_bytes)),
            block_bytes=block_bytes,
            **options,
        )
