"""From a bound plan to a scheduling problem: templates, tree, dependencies, tasks."""

from __future__ import annotations

from collections.abc import Mapping

from helium.cost.estimates import Estimates
from helium.cost.model import CostModel
from helium.plan.compiled_plan import CompiledPlan
from helium.plan.operators import Llm
from helium.planner.problem import LEFT_OVER, WHOLE_OPERATOR, PrefixTree, Problem, Task
from helium.templates.rendering import TemplateRenderer, VariableRun
from helium.templates.tokenizer import PromptTokenizer
from helium.templates.tree import TemplateTree


class Lowering:
    """A bound plan, lowered; ``tree`` and the rest are built once, problems on demand.

    Operators that need no call (all known, or not needed) are left out.

    Attributes:
        operators: LLM operators that need calls, in topological order.
        tree: The templated radix tree of these.
        prefixes: Its expected lengths.
        reads: Per operator: the LLM operators its prompt depends on, directly or through operators
            that are no LLM calls.
        num_calls: Per operator: calls to make.
    """

    def __init__(
        self, compiled: CompiledPlan, tokenizer: PromptTokenizer, estimates: Estimates
    ) -> None:
        self.compiled = compiled
        self.num_calls = {
            operator.name: count
            for operator in compiled.plan.llm_operators
            if (count := len(compiled.calls(operator.name)))
        }
        self.operators: tuple[Llm, ...] = tuple(
            operator for operator in compiled.plan.llm_operators if operator.name in self.num_calls
        )
        renderer = TemplateRenderer(compiled, tokenizer)
        self.tree = TemplateTree()
        for operator in self.operators:
            self.tree.insert(operator.name, renderer.template(operator))
        self.prefixes = _prefix_tree(self.tree, estimates)
        # A call with several outputs decodes them all; its readers wait for as long as one takes.
        self.output_tokens = {
            operator.name: estimates.value_tokens(operator.name) for operator in self.operators
        }
        self.reads = self._llm_reads()

    def operator_problem(
        self, model: CostModel, num_engines: int = 1, num_slices: int = 1
    ) -> Problem:
        """Returns the problem whose tasks are operators.

        Args:
            num_slices: The rows are cut into this many slices; the problem is that of the first,
                which is the largest.
        """
        indices = {operator.name: index for index, operator in enumerate(self.operators)}
        tasks = []
        for operator in self.operators:
            name = operator.name
            calls = -(-self.num_calls[name] // num_slices)
            tasks.append(
                Task(
                    name,
                    0 if calls == 1 else WHOLE_OPERATOR,
                    calls,
                    self.tree.leaves[name],
                    self.output_tokens[name],
                    tuple(indices[read] for read in self.reads[name]),
                    indices.get(operator.history or "", -1),
                )
            )
        return Problem(tasks, self.prefixes, model, num_engines)

    def leaves_rows_over(self, num_slices: int) -> bool:
        """Whether equal slices leave rows over, every one of which is called."""
        rows = self.compiled.rows
        return any(count % num_slices for count in self.num_calls.values()) and all(
            count == rows.num_rows(name) for name, count in self.num_calls.items()
        )

    def uneven_problem(self, model: CostModel, num_engines: int, num_slices: int) -> Problem:
        """Returns the problem whose tasks are operators on equal slices and on the rows left over.

        An operator has a task per slice, which is its ``part``, and one for the rows left over,
        part ``num_slices``. Operators with fewer rows than slices have only that.
        """
        parts: dict[str, dict[int, int]] = {}  # operator -> slice -> task
        tasks: list[Task] = []
        for operator in self.operators:
            name, total = operator.name, self.num_calls[operator.name]
            own = parts[name] = {}
            for part in range(num_slices + 1):
                is_left_over = part == num_slices
                calls = total % num_slices if is_left_over else total // num_slices
                if not calls:
                    continue
                row = LEFT_OVER if is_left_over else WHOLE_OPERATOR
                producers = dict.fromkeys(
                    task
                    for read in self.reads[name]
                    for task in (
                        [parts[read][part]] if part in parts[read] else parts[read].values()
                    )
                )
                own[part] = len(tasks)
                tasks.append(
                    Task(
                        name,
                        part if calls == 1 else row,
                        calls,
                        self.tree.leaves[name],
                        self.output_tokens[name],
                        tuple(sorted(producers)),
                        parts.get(operator.history or "", {}).get(part, -1),
                        part,
                    )
                )
        return Problem(tasks, self.prefixes, model, num_engines)

    def call_problem(self, model: CostModel, num_engines: int = 1) -> Problem:
        """Returns the problem whose tasks are single calls; linear in the calls."""
        compiled, rows = self.compiled, self.compiled.rows
        tasks: list[Task] = []
        # Per operator and row: the tasks a reader of this value waits for.
        waits: dict[tuple[str, int], tuple[int, ...]] = {}
        for operator in compiled.plan.operators:
            name = operator.name
            alike = compiled.representatives.get(name)
            to_call = set(compiled.calls(name)) if name in self.num_calls else set()
            for row in range(rows.num_rows(name)):
                if alike is not None and alike[row] != row:
                    waits[name, row] = waits[name, alike[row]]
                    continue
                if isinstance(operator, Llm) and row not in to_call:
                    waits[name, row] = ()
                    continue
                reads = dict.fromkeys(
                    task for read in rows.dependencies(name, row) for task in waits[read]
                )
                waits[name, row] = tuple(reads)
                if row in to_call:
                    waits[name, row] = (len(tasks),)
                    leaf, output = self.tree.leaves[name], self.output_tokens[name]
                    history = operator.history if isinstance(operator, Llm) else None
                    spoken = waits.get((history or "", row), ())
                    tasks.append(
                        Task(name, row, 1, leaf, output, tuple(reads), max(spoken, default=-1))
                    )
        return Problem(tasks, self.prefixes, model, num_engines)

    def _llm_reads(self) -> Mapping[str, tuple[str, ...]]:
        reached: dict[str, tuple[str, ...]] = {}
        reads: dict[str, tuple[str, ...]] = {}
        for operator in self.compiled.plan.operators:
            found: dict[str, None] = {}
            for name in operator.reads:
                found.update(dict.fromkeys(reached[name]))
            if operator.name in self.num_calls:
                reads[operator.name] = tuple(found)
                reached[operator.name] = (operator.name,)
            else:
                reached[operator.name] = () if isinstance(operator, Llm) else tuple(found)
        return reads


def _prefix_tree(tree: TemplateTree, estimates: Estimates) -> PrefixTree:
    n = tree.num_nodes
    levels, tokens, shared = [0] * n, [0.0] * n, [0.0] * n
    is_shared = [True] * n
    for node in tree.preorder():
        if not node:
            continue
        parent, run = tree.parents[node], tree.runs[node]
        levels[node] = levels[parent] + 1
        tokens[node] = tokens[parent] + estimates.run_tokens(run)
        is_shared[node] = is_shared[parent] and not (
            isinstance(run, VariableRun) and not run.is_shared
        )
        shared[node] = tokens[node] if is_shared[node] else shared[parent]
    return PrefixTree(tree.parents, levels, tokens, shared)
