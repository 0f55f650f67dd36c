"""A plan as text for people: one line per operator, Graphviz and Mermaid."""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec

from helium.plan.operators import (
    Concat,
    Data,
    Format,
    Input,
    Lambda,
    Literal,
    Llm,
    Operator,
    Output,
    Sampling,
    Slice,
    Text,
)

_MAX_VALUES = 3


def to_text(operators: Sequence[Operator], max_text: int | None) -> str:
    """Returns one line per operator; see ``LogicalPlan.to_text``."""
    return "\n".join(f"{operator.name} = {describe(operator, max_text)}" for operator in operators)


def describe(operator: Operator, max_text: int | None = 80) -> str:
    """Returns what the operator does, without its name, on one line."""
    match operator:
        case Input():
            return f"input {operator.column}"
        case Data():
            return _data(operator, max_text)
        case Format():
            return f"format {_text(operator.text, max_text)}"
        case Lambda():
            return f"lambda {operator.function}({', '.join(operator.arguments)})"
        case Llm():
            return _llm(operator, max_text)
        case Slice():
            bounds = ("" if b is None else str(b) for b in (operator.start, operator.stop))
            step = "" if operator.step is None else f":{operator.step}"
            return f"slice {operator.source}[{':'.join(bounds)}{step}]"
        case Concat():
            return f"concat {', '.join(operator.sources)}"
        case Output():
            key = "" if operator.key == operator.name else f" as {operator.key}"
            return f"output {operator.source}{key}"


def _data(operator: Data, max_text: int | None) -> str:
    shown = ", ".join(_quote(value, max_text) for value in operator.values[:_MAX_VALUES])
    if operator.is_scalar:
        return f"data {shown}"
    more = len(operator.values) - _MAX_VALUES
    return f"data [{shown}{f', ... {more} more' if more > 0 else ''}]"


def _llm(operator: Llm, max_text: int | None) -> str:
    parts = ["llm"]
    if operator.history is not None:
        parts.append(f"after {operator.history}")
    parts += [
        f"{message.role}: {_text(message.content, max_text)}" for message in operator.messages
    ]
    if operator.prompt is not None:
        parts.append(_text(operator.prompt, max_text))
    options = _options(operator.sampling)
    if operator.model is not None:
        options.append(f"model={operator.model}")
    return " ".join(parts) + (f" ({', '.join(options)})" if options else "")


def _options(sampling: Sampling) -> list[str]:
    return [
        f"{field}={json.dumps(value, ensure_ascii=False)}"
        for field, value in msgspec.to_builtins(sampling).items()
    ]


def _text(parts: Text, max_text: int | None) -> str:
    rendered = []
    for part in parts:
        if isinstance(part, Literal):
            escaped = _quote(part.text, max_text)[1:-1]
            rendered.append(escaped.replace("{", "{{").replace("}", "}}"))
        else:
            choice = f"[{part.choice}]" if part.choice else ""
            rendered.append(f"{{{part.operator}{choice}}}")
    return f'"{"".join(rendered)}"'


def _quote(value: str, max_text: int | None) -> str:
    if max_text is not None and len(value) > max_text:
        half = max(1, (max_text - 3) // 2)
        value = f"{value[:half]}...{value[-half:]}"
    return json.dumps(value, ensure_ascii=False)


_DOT_SHAPES = {"llm": "box", "output": "doublecircle", "input": "invhouse", "data": "invhouse"}
_MERMAID_SHAPES = {
    "llm": ('["', '"]'),
    "output": ('(["', '"])'),
    "input": ('[/"', '"/]'),
    "data": ('[/"', '"/]'),
}


def to_dot(operators: Sequence[Operator]) -> str:
    """Returns the graph in Graphviz's language, histories dashed."""
    lines = ["digraph plan {"]
    for operator in operators:
        kind = _kind(operator)
        label = f"{operator.name}\\n{kind}".replace('"', '\\"')
        lines.append(
            f"  {_dot_id(operator.name)} "
            f'[label="{label}", shape={_DOT_SHAPES.get(kind, "ellipse")}];'
        )
    for operator in operators:
        for name in operator.reads:
            style = " [style=dashed]" if _is_history(operator, name) else ""
            lines.append(f"  {_dot_id(name)} -> {_dot_id(operator.name)}{style};")
    return "\n".join([*lines, "}"])


def to_mermaid(operators: Sequence[Operator]) -> str:
    """Returns the graph as a Mermaid flowchart, histories dotted."""
    ids = {operator.name: f"n{index}" for index, operator in enumerate(operators)}
    lines = ["flowchart TD"]
    for operator in operators:
        left, right = _MERMAID_SHAPES.get(_kind(operator), ('("', '")'))
        label = operator.name.replace('"', "#quot;")
        lines.append(f"  {ids[operator.name]}{left}{label}{right}")
    for operator in operators:
        for name in operator.reads:
            arrow = "-.->" if _is_history(operator, name) else "-->"
            lines.append(f"  {ids[name]} {arrow} {ids[operator.name]}")
    return "\n".join(lines)


def _kind(operator: Operator) -> str:
    return str(operator.__struct_config__.tag)


def _is_history(operator: Operator, name: str) -> bool:
    return isinstance(operator, Llm) and operator.history == name


def _dot_id(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
