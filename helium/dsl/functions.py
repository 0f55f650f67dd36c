"""``@helium.function``: Python functions as operators."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, overload

from helium.dsl.node import Node
from helium.dsl.operators import apply
from helium.plan.functions import REGISTRY, Function


@overload
def function(body: Function, /) -> Callable[..., Any]: ...
@overload
def function(*, name: str) -> Callable[[Function], Callable[..., Any]]: ...
def function(body: Function | None = None, /, *, name: str | None = None) -> Callable[..., Any]:
    """Registers a stateless function; called with nodes it records, with strings it runs.

    >>> import helium
    >>> from helium import ops
    >>> @helium.function(name="first_line")
    ... def first_line(text):
    ...     return text.splitlines()[0]
    >>> first_line("a\\nb")
    'a'
    >>> first_line(ops.data("a\\nb", name="letters")).operator.function
    'first_line'

    Raises:
        WorkflowError: The name belongs to another function.
    """

    def decorate(body: Function) -> Callable[..., Any]:
        registered = REGISTRY.register(body, name)

        @functools.wraps(body)
        def record_or_run(*arguments: Any) -> Any:
            if any(isinstance(argument, Node) for argument in arguments):
                return apply(registered, *arguments)
            return body(*arguments)

        return record_or_run

    return decorate if body is None else decorate(body)
