"""The operators of the language; each call records one node.

A text is a string, a node, or a sequence of both. Plain strings are taken as they are: only ``fmt``
gives braces a meaning.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import msgspec

from helium.dsl.node import Node, join, new_id, place_of_caller, record, scope, to_text
from helium.errors import WorkflowError
from helium.plan.functions import REGISTRY
from helium.plan.operators import (
    Concat,
    Data,
    Input,
    Lambda,
    Llm,
    Message,
    Output,
    Sampling,
    Slice,
)

__all__ = [
    "Msg",
    "apply",
    "concat",
    "data",
    "fmt",
    "format",
    "input",
    "llm",
    "output",
    "placeholder",
    "scope",
    "slice",
]

TextLike = str | Node | Sequence[str | Node]


@dataclass(frozen=True, slots=True, init=False)
class Msg:
    """One chat message.

    >>> from helium import ops
    >>> question = ops.placeholder("q")
    >>> message = ops.Msg("user", ["Question: ", question])
    """

    role: str
    parts: tuple[str | Node, ...]

    def __init__(self, role: str, content: TextLike) -> None:
        """Makes a message of a role and a text.

        Raises:
            WorkflowError: The content is no text.
        """
        parts = _parts(content)
        object.__setattr__(self, "role", role)
        object.__setattr__(self, "parts", parts)


class SamplingOptions(TypedDict, total=False):
    """The keyword options of ``llm``: the fields of ``Sampling``."""

    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    min_tokens: int
    seed: int | None
    stop: str | Sequence[str]
    ignore_eos: bool
    n: int
    structured: dict[str, Any] | None


def input(column: str, *, name: str | None = None) -> Node:
    """Records a column of the batch, bound by name when the graph is compiled."""
    return record(Input(new_id(), column=column), (), name=name)


placeholder = input
"""The same operator under the name the paper gives it. Source: Helium, App. C."""


def data(values: str | Sequence[str], *, name: str | None = None) -> Node:
    """Records a batch embedded in the graph; one string is a scalar and goes with every row.

    Raises:
        WorkflowError: A value is not a string.
    """
    is_scalar = isinstance(values, str)
    values = (values,) if isinstance(values, str) else tuple(values)
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise WorkflowError(
                f"{place_of_caller()}: data has a {type(value).__name__} in row {row}; every value "
                "must be a string"
            )
    return record(Data(new_id(), values=values, is_scalar=is_scalar), (), name=name)


def fmt(template: str, /, *args: str | Node, name: str | None = None, **kwargs: str | Node) -> Node:
    """Records a text with holes, written as for ``str.format``: ``{}``, ``{0}``, ``{key}``, ``{{``.

    Raises:
        WorkflowError: A hole has no operand, an operand no hole, or a hole has a conversion or a
            format specification (outputs are text already).
    """
    parts: list[str | Node] = []
    used: set[int | str] = set()
    automatic = 0
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise _template_error(template, f"is not a format string ({error})") from None
    for literal, field, specification, conversion in pieces:
        parts.append(literal)
        if field is None:
            continue
        if specification or conversion:
            raise _template_error(template, f"formats the hole {field!r}; only plain holes work")
        key: int | str = field
        if field == "":
            key = automatic
            automatic += 1
        elif field.isdecimal():
            key = int(field)
        operand = kwargs.get(key) if isinstance(key, str) else None
        if isinstance(key, int) and key < len(args):
            operand = args[key]
        if operand is None:
            raise _template_error(
                template,
                f"has a hole {field!r} without an operand; got {len(args)} positional and the "
                f"keywords {sorted(kwargs)}",
            )
        used.add(key)
        parts.append(operand)
    unused = [key for key in (*range(len(args)), *kwargs) if key not in used]
    if unused:
        raise _template_error(template, f"has no hole for the operands {unused}")
    return join(tuple(parts), name)


format = fmt


def apply(function: str | Callable[..., str], *arguments: Node, name: str | None = None) -> Node:
    """Records a stateless function of the row's values.

    The function gets one ``str`` per argument, or a ``list[str]`` where the argument has several
    outputs per row, and returns a ``str``. It runs outside the engine, in the caller's process.

    Args:
        function: A registered name, or a function; one that has a stable name is registered.
    """
    registered = function if isinstance(function, str) else REGISTRY.register(function)
    for argument in arguments:
        if not isinstance(argument, Node):
            raise WorkflowError(
                f"{place_of_caller()}: function {registered!r} is applied to {argument!r}; "
                "arguments are operators, wrap a constant in ops.data"
            )
    ids = tuple(argument.id for argument in arguments)
    operator = Lambda(new_id(), function=registered, arguments=ids)
    return record(operator, arguments, name=name)


def llm(
    messages: Sequence[Msg] | None = None,
    *,
    prompt: TextLike | None = None,
    history: Node | None = None,
    model: str | None = None,
    name: str | None = None,
    sampling: Sampling | None = None,
    **options: Unpack[SamplingOptions],
) -> Node:
    """Records one LLM call per row: a chat (``messages``) or a completion (``prompt``).

    Args:
        history: An LLM operator whose whole conversation, its answer included, comes first.
        model: Model or LoRA adapter; the engine's default when not given.
        sampling: Parameters to start from; greedy when not given.
        **options: Fields of ``Sampling`` that replace those of ``sampling``.

    Raises:
        WorkflowError: An option is unknown or of the wrong type, or a message is no ``Msg``.
    """
    for message in messages or ():
        if not isinstance(message, Msg):
            raise WorkflowError(
                f"{place_of_caller()}: messages has a {type(message).__name__}; wrap it: "
                "ops.Msg('user', ...)"
            )
    contents = [message.parts for message in messages or ()]
    operands = [part for parts in contents for part in parts if isinstance(part, Node)]
    prompt_text = None
    if prompt is not None:
        parts = _parts(prompt)
        prompt_text = to_text(parts)
        operands += [part for part in parts if isinstance(part, Node)]
    if history is not None:
        operands.insert(0, history)
    merged = _sampling(sampling or Sampling(), options)
    operator = Llm(
        new_id(),
        messages=tuple(Message(message.role, to_text(message.parts)) for message in messages or ()),
        prompt=prompt_text,
        history=None if history is None else history.id,
        sampling=merged,
        model=model,
    )
    return record(operator, tuple(operands), name=name, width=merged.n)


def slice(
    source: Node,
    start: int | None = None,
    stop: int | None = None,
    step: int | None = None,
    *,
    name: str | None = None,
) -> Node:
    """Records some rows of a node, chosen as Python's ``source[start:stop:step]`` does."""
    operator = Slice(new_id(), source=source.id, start=start, stop=stop, step=step)
    return record(operator, (source,), name=name, width=source.width)


def concat(sources: Sequence[Node], *, name: str | None = None) -> Node:
    """Records the rows of several nodes one after another."""
    operator = Concat(new_id(), sources=tuple(source.id for source in sources))
    width = sources[0].width if sources else 1
    return record(operator, tuple(sources), name=name, width=width)


def output(source: Node, key: str | None = None) -> Node:
    """Marks a node as a result; its key is the node's name when not given."""
    # Without a key the output is keyed by its own id, which ``build`` replaces by the node's name.
    operator = Output(new_id(), source=source.id, key=key or "")
    return record(operator, (source,), width=source.width)


def _parts(content: TextLike) -> tuple[str | Node, ...]:
    if isinstance(content, Sequence) and not isinstance(content, str):
        parts = tuple(content)
    else:
        parts = (content,)
    to_text(parts)  # refuses what is no text while the user's line is at hand
    return parts


def _sampling(base: Sampling, options: SamplingOptions) -> Sampling:
    fields: dict[str, Any] = dict(options)
    if isinstance(fields.get("stop"), str):
        fields["stop"] = (fields["stop"],)
    try:
        return msgspec.convert({**msgspec.structs.asdict(base), **fields}, Sampling)
    except msgspec.ValidationError as error:
        raise WorkflowError(
            f"{place_of_caller()}: llm options: {error}; the options are "
            f"{list(Sampling.__struct_fields__)}"
        ) from None


def _template_error(template: str, problem: str) -> WorkflowError:
    shown = template if len(template) <= 60 else f"{template[:57]}..."
    return WorkflowError(f"{place_of_caller()}: template {shown!r} {problem}")
