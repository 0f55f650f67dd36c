"""A workflow as plain JSON, for programs of other environments that know nothing of this project.

    {"operators": [{"name", "depth", "reads", "max_tokens",
                    "messages": [[role, [{"text"} | {"column"} | {"operator"}, ...]], ...]}, ...],
     "columns": {name: [one text per row]},
     "outputs": [operator, ...]}

Operators are in topological order; messages are whole conversations.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.workflows import Workload
from helium.errors import ConfigError
from helium.plan.logical_plan import LogicalPlan
from helium.plan.operators import Format, Input, Literal, Llm, Text


def job_of(workload: Workload) -> dict[str, Any]:
    """Returns a workload as JSON.

    Raises:
        ConfigError: It has operators other than inputs, formats and chat calls.
    """
    plan = workload.graph.plan
    operators: list[dict[str, Any]] = []
    depths: dict[str, int] = {}
    for operator in plan.llm_operators:
        messages = [
            [message.role, list(_parts(plan, message.content))]
            for message in plan.conversation(operator.name)
        ]
        parts = (part for _, content in messages for part in content)
        reads = sorted({part["operator"] for part in parts if "operator" in part})
        depths[operator.name] = 1 + max((depths[name] for name in reads), default=0)
        operators.append(
            {
                "name": operator.name,
                "depth": depths[operator.name],
                "reads": reads,
                "max_tokens": operator.sampling.max_tokens,
                "messages": messages,
            }
        )
    return {
        "operators": operators,
        "columns": {name: list(values) for name, values in workload.batch.items()},
        "outputs": [output.source for output in plan.outputs],
    }


def prompt_digest(messages: Sequence[Sequence[str]]) -> str:
    """Returns what a call is known by across systems: its rendered messages."""
    return hashlib.sha256(json.dumps([list(m) for m in messages]).encode()).hexdigest()


def _parts(plan: LogicalPlan, content: Text) -> Iterator[dict[str, str]]:
    for part in content:
        if isinstance(part, Literal):
            yield {"text": part.text}
            continue
        source = plan.by_name[part.operator]
        match source:
            case Llm():
                yield {"operator": source.name}
            case Input():
                yield {"column": source.column}
            case Format():
                yield from _parts(plan, source.text)
            case _:
                raise ConfigError(
                    f"operator {source.name!r} is a {type(source).__name__}; frameworks are given "
                    "inputs, formats and chat calls only"
                )
