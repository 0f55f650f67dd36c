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
        num_recomputed_blocks: Blocks on the host that were computed again, because that is cheaper.
        num_waited_blocks: Blocks moved while running requests waited: loads, and stores beyond what
            the device stages.
        saved_s: Estimated seconds of computing that loads and used prefetches saved, the link's
            time taken off.
    """

    num_waits: int = 0
    num_recomputed_blocks: int = 0
    num_waited_blocks: int = 0
    saved_s: float = 0.0

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
        num_moved = sum(sum(blocks.values()) for blocks in moved.values())
        return {
            "moved_blocks": moved,
            "moved_bytes": {
                direction: {reason: count * block_bytes for reason, count in blocks.items()}
                for direction, blocks in moved.items()
            },
            "overlap_ratio": 1 - self.num_waited_blocks / num_moved if num_moved else 1.0,
            "num_waits": self.num_waits,
            "num_recomputed_blocks": self.num_recomputed_blocks,
            "saved_s": self.saved_s,
        }
