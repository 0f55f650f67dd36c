"""Replacing what operators read: the one place that knows every field that holds a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from helium.plan.operators import (
    Concat,
    Lambda,
    Literal,
    Llm,
    Message,
    Operator,
    Output,
    Reference,
    Slice,
    Text,
)
from helium.plan.operators import Format as FormatOperator


def replace_reads(operator: Operator, names: Mapping[str, str]) -> Operator:
    """Returns the operator reading ``names[x]`` wherever it read ``x``; others stay.

    Returns the same object when nothing it reads is in ``names``.
    """
    if not names or names.keys().isdisjoint(operator.reads):
        return operator

    def rename(parts: Text) -> Text:
        return tuple(
            Reference(names[part.operator], part.choice)
            if isinstance(part, Reference) and part.operator in names
            else part
            for part in parts
        )

    match operator:
        case Lambda():
            arguments = tuple(names.get(name, name) for name in operator.arguments)
            return msgspec.structs.replace(operator, arguments=arguments)
        case Slice() | Output():
            source = names.get(operator.source, operator.source)
            return msgspec.structs.replace(operator, source=source)
        case Concat():
            sources = tuple(names.get(name, name) for name in operator.sources)
            return msgspec.structs.replace(operator, sources=sources)
        case Llm(history=str(history)):
            operator = msgspec.structs.replace(operator, history=names.get(history, history))
    return replace_texts(operator, rename)


def replace_texts(operator: Operator, change: Callable[[Text], Text]) -> Operator:
    """Returns the operator with ``change`` applied to every text it holds.

    Returns the same object when ``change`` returns every text itself.
    """
    match operator:
        case FormatOperator():
            text = change(operator.text)
            if text is operator.text:
                return operator
            return msgspec.structs.replace(operator, text=text)
        case Llm():
            messages = []
            changed = False
            for message in operator.messages:
                content = change(message.content)
                if content is not message.content:
                    changed = True
                    message = Message(message.role, content)
                messages.append(message)
            prompt = None if operator.prompt is None else change(operator.prompt)
            if not changed and prompt is operator.prompt:
                return operator
            return msgspec.structs.replace(operator, messages=tuple(messages), prompt=prompt)
    return operator


def texts(operator: Operator) -> tuple[Text, ...]:
    """Returns every text the operator holds, in prompt order."""
    match operator:
        case FormatOperator():
            return (operator.text,)
        case Llm():
            contents = tuple(message.content for message in operator.messages)
            return contents if operator.prompt is None else (*contents, operator.prompt)
    return ()


def renamed(operator: Operator, name: str) -> Operator:
    """Returns the operator under another name."""
    return operator if operator.name == name else msgspec.structs.replace(operator, name=name)


def num_characters(parts: Text) -> int:
    """Returns the static characters of a text."""
    return sum(len(part.text) for part in parts if isinstance(part, Literal))
