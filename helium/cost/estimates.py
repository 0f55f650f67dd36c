"""Expected lengths of the values of a bound plan, from profiles, the batch and defaults."""

from __future__ import annotations

from collections.abc import Sequence

from helium.cost.profile import Profile, operator_signatures
from helium.plan.compiled_plan import CompiledPlan
from helium.plan.operators import (
    Concat,
    Data,
    Format,
    Input,
    Lambda,
    Llm,
    Operator,
    Reference,
    Slice,
)
from helium.templates.rendering import Run, VariableRun
from helium.templates.tokenizer import PromptTokenizer

DEFAULT_OUTPUT_TOKENS = 256
"""Output of an operator nothing is known of: half of the 512 tokens the paper's workflows allow."""

_NUM_MEASURED = 4_096
"""Values of a column whose characters are counted; planning must not grow with the rows."""

_NUM_TOKENIZED = 4
_CHARS_TOKENIZED = 512
"""How many of those, and how much of each, is tokenized to learn the tokens per character."""


class Estimates:
    """Expected tokens per value, by operator name; computed when asked, then remembered."""

    def __init__(
        self, compiled: CompiledPlan, tokenizer: PromptTokenizer, profile: Profile | None = None
    ) -> None:
        self._compiled = compiled
        self._tokenizer = tokenizer
        self._profile = profile or Profile()
        self._signatures = operator_signatures(compiled.plan) if profile is not None else {}
        self._lengths: dict[str, float] = {}

    def value_tokens(self, name: str) -> float:
        """Returns the expected tokens of one value of an operator, for one of its outputs."""
        known = self._lengths.get(name)
        if known is not None:
            return known
        by_name = self._compiled.plan.by_name
        pending = [name]
        while pending:  # not by recursion: plans may be thousands of operators deep
            operator = by_name[pending[-1]]
            missing = [read for read in self._needs(operator) if read not in self._lengths]
            if missing:
                pending += missing
                continue
            pending.pop()
            if operator.name not in self._lengths:
                self._lengths[operator.name] = self._estimate(operator)
        return self._lengths[name]

    def run_tokens(self, run: Run) -> float:
        """Returns the expected tokens of a run of a template."""
        if not isinstance(run, VariableRun):
            return len(run) // 4
        value = run.value
        return run.num_join_tokens + (self.value_tokens(value.operator) if value else 0.0)

    def _needs(self, operator: Operator) -> Sequence[str]:
        """What the estimate of an operator is made from."""
        return () if isinstance(operator, Llm) else operator.reads

    def _estimate(self, operator: Operator) -> float:
        known = self._profile.output(self._signatures.get(operator.name, ""))
        match operator:
            case Llm():
                sampling = operator.sampling
                expected = known.mean if known else float(DEFAULT_OUTPUT_TOKENS)
                limit = sampling.max_tokens
                expected = expected if limit is None else min(expected, limit)
                return max(expected, sampling.min_tokens, 1.0)
            case Input():
                column = self._profile.columns.get(operator.column)
                if column is not None and column.count:
                    return column.mean
                values = self._compiled.columns[operator.column]
                return self._sample([values] if isinstance(values, str) else values)
            case Data():
                return self._sample(operator.values)
            case Lambda() if known:
                return known.mean
            case Format():
                return sum(
                    self._lengths[part.operator]
                    if isinstance(part, Reference)
                    else self._sample([part.text])
                    for part in operator.text
                )
            case Slice():
                return self._lengths[operator.source]
            case Concat():
                lengths = [self._lengths[source] for source in operator.sources]
                return sum(lengths) / len(lengths)
        # A function nothing is known of: about as long as what it reads.
        return sum(self._lengths[read] for read in operator.reads)

    def _sample(self, values: Sequence[str]) -> float:
        """Returns the mean tokens of values, from some that are spread evenly over the rows."""
        measured = values[:: -(-len(values) // _NUM_MEASURED) or 1]
        tokenized = measured[:: -(-len(measured) // _NUM_TOKENIZED) or 1]
        starts = [value[:_CHARS_TOKENIZED] for value in tokenized]
        num_chars = sum(map(len, starts))
        if not num_chars:
            return 0.0
        num_tokens = sum(len(self._tokenizer.encode(start).token_ids) for start in starts)
        return num_tokens / num_chars * sum(map(len, measured)) / len(measured)
