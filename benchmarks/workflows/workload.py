"""A workflow together with rows to run it on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from helium.dsl.graph import Graph
from helium.plan.compiled_plan import CompiledPlan


@dataclass(frozen=True)
class Workload:
    """What a benchmark runs.

    Attributes:
        batch: Column -> one text per row.
    """

    name: str
    graph: Graph
    batch: Mapping[str, Sequence[str]]

    @property
    def num_rows(self) -> int:
        """Rows of the batch."""
        return len(next(iter(self.batch.values())))

    def compile(self) -> CompiledPlan:
        """Binds the batch."""
        return self.graph.compile(**self.batch)

    def with_batch(self, batch: Mapping[str, Sequence[str]]) -> Workload:
        """Returns the same workflow over other rows, such as a real data set's."""
        return replace(self, batch=batch)


def column(size: int, text_of: Callable[[int], str]) -> list[str]:
    """Returns one column: ``text_of(row)`` for every row."""
    return [text_of(row) for row in range(size)]


def scaled(num_words: int, scale: float) -> int:
    """Returns a length in words under a workload's ``scale``, at least one word."""
    return max(1, round(num_words * scale))
