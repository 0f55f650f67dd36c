"""What the host tier counts beyond the index's own counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class TierFigures:
    """Counts of one engine's host tier.

    Attributes:
        num_waits: Steps in which a request waited for its prefix to come back beside the step.
        num_deferrals: Admissions put off by a step, because the room is such a request's.
        num_recomputed_blocks: Blocks on the host that were computed again, because that is cheaper.
        num_waited_blocks: Blocks moved while running requests waited: loads, and stores beyond what
            the device stages.
        saved_s: Estimated seconds of computing that loads and used prefetches saved, the link's
            time taken off.
    """

    num_waits: int = 0
    num_deferrals: int = 0
    num_recomputed_blocks: int = 0
    num_waited_blocks: int = 0
    saved_s: float = 0.0

    @property
    def deferrals_per_wait(self) -> float:
        """Other requests that wait along with one that waits."""
        return self.num_deferrals / self.num_waits if self.num_waits else 0.0

    def describe(self, index: Mapping[str, Any], block_bytes: int) -> dict[str, Any]:
        """Returns the host tier's part of the status report.

        Args:
            index: The index's own counts of the host.
            block_bytes: Of one block on one worker.
        """
        moved = {
            "stored": {"evicted": index["num_stored"]},
            "loaded": {"request": index["num_loaded"], "prefetch": index["num_prefetched"]},
        }
        used = index["num_prefetches_used"]
        settled = used + index["num_prefetches_wasted"]
        num_moved = sum(sum(blocks.values()) for blocks in moved.values())
        return {
            "moved_blocks": moved,
            "moved_bytes": {
                direction: {reason: count * block_bytes for reason, count in blocks.items()}
                for direction, blocks in moved.items()
            },
            "prefetch_accuracy": used / settled if settled else None,
            "overlap_ratio": 1 - self.num_waited_blocks / num_moved if num_moved else 1.0,
            "num_waits": self.num_waits,
            "num_deferrals": self.num_deferrals,
            "num_recomputed_blocks": self.num_recomputed_blocks,
            "saved_s": self.saved_s,
        }
