"""Which blocks one step copies between the device and the host."""

from __future__ import annotations

from dataclasses import dataclass, field

Pairs = tuple[list[int], list[int]]
"""Blocks and, one to one, slots of host memory."""


def _none() -> Pairs:
    return [], []


@dataclass
class StepMoves:
    """Copies of one step, in the order in which they must happen.

    Attributes:
        stores: Before anything of the step writes a block: what was evicted is still there then.
        loads: Before the step's forward pass, which reads them.
        prefetches: Before the next step; nothing of this step touches their blocks.
    """

    stores: Pairs = field(default_factory=_none)
    loads: Pairs = field(default_factory=_none)
    prefetches: Pairs = field(default_factory=_none)

    def __bool__(self) -> bool:
        return bool(self.stores[0] or self.loads[0] or self.prefetches[0])
