"""What ``Llm.history`` means: one conversation carried on by several operators."""

from __future__ import annotations

from collections.abc import Mapping

from helium.plan.operators import Llm, Message, Operator, Reference


def messages(by_name: Mapping[str, Operator], name: str) -> tuple[Message, ...]:
    """Returns all messages of the chat operator ``name``, oldest first.

    See ``LogicalPlan.conversation``.
    """
    turns: list[Llm] = []
    current: str | None = name
    while current is not None:
        operator = by_name[current]
        assert isinstance(operator, Llm), f"{current!r} is not an LLM operator"
        turns.append(operator)
        current = operator.history
    turns.reverse()
    result: list[Message] = []
    for index, turn in enumerate(turns):
        if index:
            reply = Reference(turns[index - 1].name)
            result.append(Message("assistant", (reply,)))
        result.extend(turn.messages)
    return tuple(result)
