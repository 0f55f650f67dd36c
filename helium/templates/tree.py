"""The operator-level templated radix tree (TRT).

A node carries one run: static tokens or one value. Its path from the root is a prefix of the
templates of all operators below it; an operator's template may end at an inner node, so that one
prompt may be a prefix of another. Built by inserting the operators in topological order: longest
common prefix, split where they part.

Source: Helium, §5 and App. A. Ours is over tokens, and one node holds one run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from helium.templates.rendering import Run, Template, VariableRun

_TOKEN_BYTES = 4


class StaticPrefix(NamedTuple):
    """A run of tokens that many calls start with.

    Attributes:
        token_ids: int32, native byte order, from the first token of the prompt.
        num_uses: Calls expected to start with it.
        node: The tree node where it ends.
    """

    token_ids: bytes
    num_uses: int
    node: int

    @property
    def num_tokens(self) -> int:
        """Its length."""
        return len(self.token_ids) // _TOKEN_BYTES


class TemplateTree:
    """A radix tree of templates. Node 0 is the root; parents have no particular order.

    ``insert`` mutates; everything else reads. Node numbers stay valid, but a later insertion may
    put a new node between a node and its parent.

    Attributes:
        parents: Parent of every node, [num_nodes]; the root's is itself.
        runs: The run of every node, [num_nodes]; the root's is empty.
        leaves: Node where each inserted operator ends, in insertion order.
    """

    def __init__(self) -> None:
        self.parents: list[int] = [0]
        self.runs: list[Run] = [b""]
        self.leaves: dict[str, int] = {}
        # No child (0), the only child, or several by the key of their run: most nodes have one.
        self._children: list[int | dict[str | bytes, int]] = [0]

    @property
    def num_nodes(self) -> int:
        """Number of nodes, the root included."""
        return len(self.parents)

    def insert(self, operator: str, template: Template) -> int:
        """Adds an operator's template and returns the node it ends at.

        Linear in the template. Each operator is inserted once.
        """
        assert operator not in self.leaves, f"operator {operator!r} is in the tree already"
        node = 0
        for run in template:
            if isinstance(run, bytes):
                node = self._extend(node, run)
            else:
                child = self._child(node, run.label)
                node = child or self._add(node, run)
        self.leaves[operator] = node
        return node

    def children(self, node: int) -> tuple[int, ...]:
        """Returns the children of a node in order of insertion."""
        children = self._children[node]
        if isinstance(children, dict):
            return tuple(children.values())
        return (children,) if children else ()

    def path(self, node: int) -> list[int]:
        """Returns the nodes from below the root down to ``node``."""
        nodes = []
        while node:
            nodes.append(node)
            node = self.parents[node]
        nodes.reverse()
        return nodes

    def preorder(self) -> Iterator[int]:
        """Yields all nodes, parents before their children, the root first."""
        stack = [0]
        while stack:
            node = stack.pop()
            yield node
            children = self._children[node]
            if isinstance(children, dict):
                stack.extend(reversed(children.values()))
            elif children:
                stack.append(children)

    def num_uses(self, num_calls: Callable[[str], int]) -> list[int]:
        """Returns how many calls read each node, [num_nodes].

        Args:
            num_calls: Calls of an operator.
        """
        uses = [0] * self.num_nodes
        for operator, leaf in self.leaves.items():
            uses[leaf] += num_calls(operator)
        for node in reversed(list(self.preorder())):
            if node:
                uses[self.parents[node]] += uses[node]
        return uses

    def static_prefixes(self, uses: Sequence[int], min_uses: int = 2) -> list[StaticPrefix]:
        """Returns the longest static prefixes that at least ``min_uses`` calls start with.

        A prefix that is part of another one returned is left out: computing the longer one computes
        it too. Most valuable (tokens times uses) first.
        """
        found: list[StaticPrefix] = []
        stack: list[tuple[int, bytes]] = [(0, b"")]
        while stack:
            node, prefix = stack.pop()
            longer = [
                (child, prefix + run)
                for child in self.children(node)
                if isinstance(run := self.runs[child], bytes) and uses[child] >= min_uses
            ]
            if not longer and prefix:
                found.append(StaticPrefix(prefix, uses[node], node))
            stack.extend(reversed(longer))
        found.sort(key=lambda prefix: -prefix.num_tokens * prefix.num_uses)
        return found

    def check_integrity(self) -> None:
        """Checks the tree's invariants.

        Raises:
            AssertionError: Names the invariant and the node.
        """
        seen = list(self.preorder())
        assert sorted(seen) == list(range(self.num_nodes)), "a node is unreachable or reached twice"
        for node in seen:
            for child in self.children(node):
                found = self._child(node, _key(self.runs[child]))
                assert self.parents[child] == node, f"node {child} disowns its parent {node}"
                assert found == child, f"node {child} is filed under another key"
                assert self.runs[child] != b"", f"node {child} is empty"
        ends = set(self.leaves.values())
        for node in seen[1:]:
            assert node in ends or self._children[node], f"node {node} leads to no operator"

    def _child(self, node: int, key: str | bytes) -> int:
        """Returns the child whose run begins like this, or 0."""
        children = self._children[node]
        if isinstance(children, dict):
            return children.get(key, 0)
        return children if children and _key(self.runs[children]) == key else 0

    def _extend(self, node: int, run: bytes) -> int:
        while run:
            child = self._child(node, run[:_TOKEN_BYTES])
            if not child:
                return self._add(node, run)
            known = self.runs[child]
            assert isinstance(known, bytes)
            shared = common_prefix(known, run)
            if shared < len(known):
                child = self._split(child, shared)
            node, run = child, run[shared:]
        return node

    def _add(self, parent: int, run: Run) -> int:
        node = self.num_nodes
        self.parents.append(parent)
        self.runs.append(run)
        self._children.append(0)
        children = self._children[parent]
        if isinstance(children, dict):
            children[_key(run)] = node
        elif children:
            self._children[parent] = {_key(self.runs[children]): children, _key(run): node}
        else:
            self._children[parent] = node
        return node

    def _split(self, node: int, length: int) -> int:
        """Puts a new node above ``node`` that takes the first ``length`` bytes of its run."""
        run = self.runs[node]
        assert isinstance(run, bytes)
        parent, upper = self.parents[node], self.num_nodes
        self.parents.append(parent)
        self.runs.append(run[:length])
        self._children.append(node)
        siblings = self._children[parent]
        if isinstance(siblings, dict):
            siblings[_key(run)] = upper
        else:
            self._children[parent] = upper
        self.runs[node] = run[length:]
        self.parents[node] = upper
        return upper


def common_prefix(a: bytes, b: bytes) -> int:
    """Returns the length in bytes of the longest common prefix, in whole tokens."""
    limit = min(len(a), len(b)) // _TOKEN_BYTES
    if a[: limit * _TOKEN_BYTES] == b[: limit * _TOKEN_BYTES]:
        return limit * _TOKEN_BYTES
    low = 0
    while low < limit:  # the first `low` tokens agree, the first `limit` do not
        middle = (low + limit + 1) // 2
        if (
            a[low * _TOKEN_BYTES : middle * _TOKEN_BYTES]
            == b[low * _TOKEN_BYTES : middle * _TOKEN_BYTES]
        ):
            low = middle
        else:
            limit = middle - 1
    return low * _TOKEN_BYTES


def _key(run: Run) -> str | bytes:
    return run.label if isinstance(run, VariableRun) else run[:_TOKEN_BYTES]
