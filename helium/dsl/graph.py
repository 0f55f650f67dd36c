"""From nodes to a plan: the backward walk, names, and checks with the user's lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from helium.dsl.node import Node, place_of_caller
from helium.dsl.operators import output
from helium.errors import WorkflowError
from helium.plan.compiled_plan import CompiledPlan, bind
from helium.plan.logical_plan import LogicalPlan
from helium.plan.operators import Input, Lambda, Operator, Output
from helium.plan.rewrite import renamed, replace_reads


@dataclass(frozen=True, slots=True)
class Graph:
    """A workflow that is built and checked, ready for any batch.

    Attributes:
        sources: Operator name -> ``file:line`` of the user's call, for messages.
    """

    plan: LogicalPlan
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    def compile(self, **batch: str | Sequence[str]) -> CompiledPlan:
        """Binds the inputs by name; a plain string goes with every row. Runs nothing.

        Raises:
            WorkflowError: A column is missing or unknown, or rows do not match.
        """
        return bind(self.plan, batch, sources=self.sources)

    def __str__(self) -> str:
        return self.plan.to_text()


def build(outputs: Sequence[Node] | Mapping[str, Node]) -> Graph:
    """Builds the graph of everything the outputs need.

    Operators keep the names they were given; the others are named after what they are, numbered in
    the order the walk from the outputs finds them, so equal programs give equal plans.

    Args:
        outputs: Results by key; in a sequence, a node's key is its name.

    Raises:
        WorkflowError: Two operators share a name, or the plan is not valid; names the operator and
            the user's line.

    >>> from helium import graphs, ops
    >>> question = ops.placeholder("question")
    >>> draft = ops.llm([ops.Msg("user", ["Answer: ", question])], name="draft")
    >>> print(graphs.build([draft]))
    question = input question
    draft = llm user: "Answer: {question}"
    draft.output = output draft as draft
    """
    roots = _roots(outputs)
    nodes = _producers_first(roots)
    names = _names(nodes)
    operators = [_named(node, names) for node in nodes]
    sources = {names[node.id]: node.place for node in nodes}
    plan = LogicalPlan(tuple(operators))
    plan.validate(sources)
    return Graph(plan, sources)


def _roots(outputs: Sequence[Node] | Mapping[str, Node]) -> list[Node]:
    if isinstance(outputs, Mapping):
        pairs: list[tuple[str, Node]] = list(outputs.items())
    elif isinstance(outputs, Node):
        raise WorkflowError(f"{place_of_caller()}: build takes a list of nodes, got {outputs!r}")
    else:
        pairs = [("", node) for node in outputs]
    roots = []
    for key, node in pairs:
        if not isinstance(node, Node):
            raise WorkflowError(
                f"{place_of_caller()}: build takes nodes, got {type(node).__name__} {node!r}"
            )
        if isinstance(node.operator, Output):
            if key:
                raise WorkflowError(f"{place_of_caller()}: {node!r} is an output already")
            roots.append(node)
            continue
        roots.append(output(node, key))
    return roots


def _producers_first(roots: Sequence[Node]) -> list[Node]:
    order: list[Node] = []
    seen: set[str] = set()
    stack = [(root, False) for root in reversed(roots)]
    while stack:
        node, is_expanded = stack.pop()
        if is_expanded:
            order.append(node)
        elif node.id not in seen:
            seen.add(node.id)
            stack.append((node, True))
            stack.extend((operand, False) for operand in reversed(node.operands))
    return order


def _names(nodes: Sequence[Node]) -> dict[str, str]:
    given: dict[str, Node] = {}
    for node in nodes:
        if node.name is None:
            continue
        other = given.setdefault(node.name, node)
        if other is not node:
            raise WorkflowError(
                f"operator {node.name!r} ({node.place}) has the name of another one "
                f"({other.place}); names are unique, rename one or use ops.scope"
            )
    names = {node.id: name for name, node in given.items()}
    taken = set(given)
    numbers: dict[str, int] = {}
    for node in nodes:
        if node.id not in names:
            stem = node.scope + _stem(node, names)
            if isinstance(node.operator, Output) and stem in taken:
                stem = f"{stem}.output"
            names[node.id] = _free_name(stem, taken, numbers)
    return names


def _free_name(stem: str, taken: set[str], numbers: dict[str, int]) -> str:
    name = stem
    while name in taken:
        numbers[stem] = numbers.get(stem, 1) + 1
        name = f"{stem}_{numbers[stem]}"
    taken.add(name)
    return name


def _stem(node: Node, names: Mapping[str, str]) -> str:
    match node.operator:
        case Input():
            return node.operator.column
        case Lambda():
            return node.operator.function.rpartition(".")[2]
        case Output():
            source = names[node.operator.source].removeprefix(node.scope)
            has_key = node.operator.key != node.id
            return node.operator.key if has_key else f"{source}.output"
    return type(node.operator).__name__.lower()


def _named(node: Node, names: Mapping[str, str]) -> Operator:
    operator = replace_reads(node.operator, names)
    if isinstance(operator, Output) and operator.key == node.id:
        operator = msgspec.structs.replace(operator, key=operator.source)
    return renamed(operator, names[node.id])
