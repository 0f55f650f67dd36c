"""The decorator style: a Python function as a workflow."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from helium.dsl.graph import Graph, build
from helium.dsl.node import Node
from helium.dsl.operators import input
from helium.errors import WorkflowError
from helium.plan.compiled_plan import CompiledPlan

Body = Callable[..., Node | Sequence[Node] | Mapping[str, Node]]


class Workflow:
    """A function that records a workflow when called with nodes.

    Parameters without a default are columns of the batch; parameters with one are options, fixed
    when the graph is built. What the function returns are the outputs: one node (its key is the
    function's name), a list, or a mapping by key. Calling it inside another workflow records its
    operators there.

    >>> from helium import ops, workflow
    >>> @workflow
    ... def review(question, rounds=1):
    ...     answer = ops.llm([ops.Msg("user", question)])
    ...     for _ in range(rounds):
    ...         answer = ops.llm([ops.Msg("user", "Improve it.")], history=answer)
    ...     return answer
    >>> print(review.build(rounds=1))
    question = input question
    llm = llm user: "{question}"
    llm_2 = llm after llm user: "Improve it."
    review = output llm_2
    >>> review.compile(question=["Why?", "How?"]).rows.num_rows("review")
    2
    """

    def __init__(self, body: Body) -> None:
        """Wraps the function; it is not called before ``build``."""
        functools.update_wrapper(self, body)
        self._body = body
        self._columns: list[str] = []
        self._options: list[str] = []
        for parameter in inspect.signature(body).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise WorkflowError(
                    f"workflow {body.__name__!r} has the parameter {parameter}; name each column"
                )
            has_default = parameter.default is not parameter.empty
            (self._options if has_default else self._columns).append(parameter.name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Records the workflow's operators and returns what the function returns."""
        return self._body(*args, **kwargs)

    def build(self, **options: Any) -> Graph:
        """Builds the graph with these options; the others keep their defaults.

        Raises:
            WorkflowError: An option is unknown, or the graph is not valid.
        """
        unknown = [option for option in options if option not in self._options]
        if unknown:
            raise WorkflowError(
                f"workflow {self.__name__!r} has no options {unknown}; available: {self._options}"
            )
        bound = inspect.signature(self._body).bind(
            **{column: input(column) for column in self._columns}, **options
        )
        result = self._body(*bound.args, **bound.kwargs)
        return build({self.__name__: result} if isinstance(result, Node) else result)

    def compile(self, **batch: str | Sequence[str]) -> CompiledPlan:
        """Builds with default options and binds the batch."""
        return self.build().compile(**batch)

    __name__: str


def workflow(body: Body) -> Workflow:
    """Makes a workflow of a function; see ``Workflow``."""
    return Workflow(body)
