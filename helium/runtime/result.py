"""What a run gives back: rows by output, failures with their reasons, token counts."""

from __future__ import annotations

import msgspec

from helium.explain.report import Measured
from helium.plan.interpret import Value

RESULT_VERSION = 1


class RowFailure(msgspec.Struct, frozen=True):
    """One operator's row that could not be computed; what depends on it fails with it."""

    operator: str
    row: int
    reason: str


class CallCounts(msgspec.Struct):
    """Totals over the calls of a run or of one operator, in calls and tokens.

    Tokens are those of the calls made at engines.

    Attributes:
        num_calls: Calls made at engines.
        num_shared: Calls that an equal call under way answered.
        num_cache_hits: Calls that the prompt cache answered when they were about to be made.
    """

    num_calls: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    num_shared: int = 0
    num_cache_hits: int = 0

    @property
    def num_computed_tokens(self) -> int:
        """Prompt tokens that went through the model."""
        return self.num_prompt_tokens - self.num_cached_tokens

    def measured(self) -> Measured:
        """Returns the counts of one operator as EXPLAIN shows them."""
        return Measured(
            num_calls=self.num_calls,
            prefill_tokens=self.num_computed_tokens,
            cached_tokens=self.num_cached_tokens,
            output_tokens=self.num_output_tokens,
            queue_ms=0.0,
        )


class RunResult(msgspec.Struct):
    """The outcome of a run.

    Attributes:
        outputs: Result key -> one value per row, in row order; ``None`` where the row failed.
        failures: The rows that failed by themselves, in the order they failed.
        counts: Token counts by LLM operator.
        elapsed_s: Wall time of the run in seconds.
        version: Schema version of the JSON form.
    """

    run: str
    outputs: dict[str, list[Value | None]]
    failures: list[RowFailure]
    counts: dict[str, CallCounts]
    elapsed_s: float
    version: int = RESULT_VERSION

    def rows(self) -> list[dict[str, Value | None]]:
        """Returns the results row by row: one value for every output that has such a row."""
        num_rows = max((len(values) for values in self.outputs.values()), default=0)
        return [
            {key: values[row] for key, values in self.outputs.items() if row < len(values)}
            for row in range(num_rows)
        ]

    def measured(self) -> dict[str, Measured]:
        """Returns the figures by operator that EXPLAIN ANALYZE puts beside the predicted ones."""
        return {name: counts.measured() for name, counts in self.counts.items() if counts.num_calls}

    @property
    def total(self) -> CallCounts:
        """Counts over all operators."""
        fields = CallCounts.__struct_fields__
        sums = (sum(getattr(c, field) for c in self.counts.values()) for field in fields)
        return CallCounts(*sums)
