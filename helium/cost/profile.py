"""Profiles: what earlier runs taught about operators, kept as JSON.

An operator is found again by its *signature*: a hash of its own static text, roles, sampling and
model. What it reads counts as holes only, so that renaming operators or editing the workflow
elsewhere keeps its statistics. Operators with equal signatures (steps of a chain) are told apart by
their order in the plan.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec

from helium.cost.statistics import LengthStatistics
from helium.errors import PlanError
from helium.json_text import decode_json
from helium.plan.logical_plan import LogicalPlan
from helium.plan.operators import Format, Llm, Operator, Reference, Text

PROFILE_VERSION = 1


class Profile(msgspec.Struct, forbid_unknown_fields=True):
    """Statistics by operator signature; ``observe`` mutates it.

    Attributes:
        version: Schema version.
        outputs: Output tokens of LLM operators and of functions.
        columns: Tokens of the batch's columns, by column name.
    """

    version: int = PROFILE_VERSION
    outputs: dict[str, LengthStatistics] = msgspec.field(default_factory=dict)
    columns: dict[str, LengthStatistics] = msgspec.field(default_factory=dict)

    def observe_output(self, signature: str, num_tokens: int) -> None:
        """Adds the length of one output."""
        self.outputs.setdefault(signature, LengthStatistics()).observe(num_tokens)

    def observe_column(self, column: str, num_tokens: int) -> None:
        """Adds the length of one value of a column."""
        self.columns.setdefault(column, LengthStatistics()).observe(num_tokens)

    def output(self, signature: str) -> LengthStatistics | None:
        """Returns what is known of an operator, or of the first one with its static text."""
        found = self.outputs.get(signature)
        if found is None:
            found = self.outputs.get(f"{signature.partition('#')[0]}#0")
        return found if found is not None and found.count else None

    def merge(self, other: Profile) -> None:
        """Adds another profile's observations."""
        for mine, theirs in zip(self._maps(), other._maps(), strict=True):
            for key, statistics in theirs.items():
                mine.setdefault(key, LengthStatistics()).merge(statistics)

    def to_json(self) -> bytes:
        """Returns the canonical encoding: equal profiles give equal bytes."""
        return msgspec.json.encode(Profile(self.version, *map(_sorted, self._maps())))

    def _maps(self) -> tuple[dict[str, LengthStatistics], dict[str, LengthStatistics]]:
        return self.outputs, self.columns

    @classmethod
    def from_json(cls, raw: bytes | str) -> Profile:
        """Decodes a profile.

        Raises:
            PlanError: It is not JSON, of another version, or a field is wrong.
        """
        try:
            profile = decode_json(raw, cls)
        except msgspec.DecodeError as error:
            raise PlanError(f"profile: {error}; write it with Profile.to_json") from None
        if profile.version != PROFILE_VERSION:
            raise PlanError(
                f"profile: `version` is {profile.version}, this release reads {PROFILE_VERSION}; "
                "delete it and let a run learn it anew"
            )
        return profile


def operator_signatures(plan: LogicalPlan) -> dict[str, str]:
    """Returns the signature of every operator by its name: ``<24 hex digits>#<ordinal>``.

    Linear in the plan's static text.
    """
    seen: dict[str, int] = {}
    signatures: dict[str, str] = {}
    for operator in plan.operators:
        shallow = _shallow_signature(operator, plan.by_name)
        ordinal = seen.get(shallow, 0)
        seen[shallow] = ordinal + 1
        signatures[operator.name] = f"{shallow}#{ordinal}"
    return signatures


def _sorted(statistics: dict[str, LengthStatistics]) -> dict[str, LengthStatistics]:
    return {
        key: LengthStatistics(found.count, found.mean, dict(sorted(found.buckets.items())))
        for key, found in sorted(statistics.items())
    }


def _shallow_signature(operator: Operator, by_name: Mapping[str, Operator]) -> str:
    parts: list[object] = [type(operator).__name__]
    if isinstance(operator, Llm):
        parts += [operator.model, operator.history is not None]
        parts += [msgspec.to_builtins(operator.sampling)]
        parts += [(m.role, *_holes(m.content, by_name)) for m in operator.messages]
        parts += [_holes(operator.prompt, by_name)] if operator.prompt is not None else []
    else:
        fields = msgspec.to_builtins(operator)
        # Whatever names other operators is not part of it, nor is a batch embedded in the plan.
        reads = {"name", "text", "arguments", "source", "sources", "values"}
        parts += [(key, value) for key, value in fields.items() if key not in reads]
        parts += [_holes(operator.text, by_name)] if isinstance(operator, Format) else []
    raw = msgspec.json.encode(parts, order="deterministic")
    return hashlib.sha256(raw).hexdigest()[:24]


def _holes(text: Text, by_name: Mapping[str, Operator]) -> list[str | None]:
    """Returns the literals of a text, formats inlined, with ``None`` for every other value."""
    parts: list[str | None] = []
    for part in text:
        if not isinstance(part, Reference):
            parts.append(part.text)
            continue
        producer = by_name[part.operator]
        parts += _holes(producer.text, by_name) if isinstance(producer, Format) else [None]
    return parts
