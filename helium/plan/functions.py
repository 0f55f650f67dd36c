"""The registry of functions that ``Lambda`` operators call by name.

A plan carries only the name, so a plan from elsewhere can call nothing that this process did not
register itself.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping

from helium.errors import WorkflowError

Function = Callable[..., str]


class FunctionRegistry(Mapping[str, Function]):
    """Functions by name; a name is registered once."""

    def __init__(self) -> None:
        self._functions: dict[str, Function] = {}

    def register(self, function: Function, name: str | None = None) -> str:
        """Registers a stateless function and returns its name.

        Registering the same code again under the same name (a reloaded module) replaces it.

        Args:
            name: ``module.qualname`` of the function when not given.

        Raises:
            WorkflowError: The name belongs to another function, or a lambda expression comes
                without a name.
        """
        qualified = _qualified(function)
        if name is None:
            if "<" in qualified:
                raise WorkflowError(
                    f"function {qualified!r} has no stable name to be known by; give one, for "
                    "example register(function, name='parse_answer')"
                )
            name = qualified
        known = self._functions.get(name)
        if known is not None and not _is_reload(known, function):
            raise WorkflowError(
                f"function name {name!r} already belongs to {_qualified(known)}; register "
                f"{_qualified(function)} under another name"
            )
        self._functions[name] = function
        return name

    def __getitem__(self, name: str) -> Function:
        """Returns the function of that name.

        Raises:
            UnknownFunction: No function has that name. It is a ``KeyError`` as well, so ``in`` and
                ``get`` work as on any mapping.
        """
        try:
            return self._functions[name]
        except KeyError:
            raise UnknownFunction(unknown_function(name, self._functions)) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)

    def __len__(self) -> int:
        return len(self._functions)


class UnknownFunction(WorkflowError, KeyError):
    """A plan names a function that this process has not registered."""

    __str__ = Exception.__str__


def unknown_function(name: str, known: Mapping[str, Function]) -> str:
    """Returns the message for a missing function, with the nearest names there are."""
    near = difflib.get_close_matches(name, known, n=3) or sorted(known)[:5]
    return (
        f"function {name!r} is not registered in this process; register it with "
        f"@helium.function(name={name!r}) before the workflow runs; registered: {near}"
    )


def _is_reload(known: Function, function: Function) -> bool:
    """Whether the two are one function, or one definition executed again (a notebook's cell)."""
    if known is function:
        return True
    has_closure = getattr(function, "__closure__", None) is not None
    return _qualified(known) == _qualified(function) and not has_closure


def _qualified(function: Function) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    # Methods of built-in types, such as str.strip, have no module of their own.
    owner = getattr(named, "__module__", None) or getattr(named, "__objclass__", named).__module__
    return f"{owner}.{named.__qualname__}"


REGISTRY = FunctionRegistry()
"""The functions of this process."""
