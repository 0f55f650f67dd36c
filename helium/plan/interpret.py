"""The reference interpreter: what a plan means, slowly and plainly.

One row at a time, in plan order, nothing shared and nothing skipped. Tests compare the optimizer
and the runtime with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from helium.plan.calls import Call
from helium.plan.compiled_plan import CompiledPlan
from helium.plan.functions import REGISTRY, Function
from helium.plan.operators import (
    Concat,
    Data,
    Format,
    Input,
    Lambda,
    Llm,
    Operator,
    Output,
    Reference,
    Slice,
    Text,
)
from helium.plan.text import render

Value = str | tuple[str, ...]
"""One row's value: a tuple where an LLM operator has ``n > 1`` outputs."""


Model = Callable[[Call, str, int], tuple[str, ...]]
"""Answers a call, made for an operator and a row, with its ``n`` outputs. Only calls that are not
deterministic may depend on operator and row: they are drawn independently."""


def interpret(
    compiled: CompiledPlan, model: Model, functions: Mapping[str, Function] = REGISTRY
) -> dict[str, list[Value]]:
    """Runs a compiled plan and returns the rows of each result by key; ``known`` is not used."""
    interpreter = _Interpreter(compiled, model, functions)
    return {output.key: interpreter.values(output) for output in compiled.plan.outputs}


class _Interpreter:
    def __init__(
        self, compiled: CompiledPlan, model: Model, functions: Mapping[str, Function]
    ) -> None:
        self._compiled = compiled
        self._model = model
        self._functions = functions
        self._values: dict[str, list[Value]] = {}
        for operator in compiled.plan.operators:
            rows = range(compiled.rows.num_rows(operator.name))
            self._values[operator.name] = [self._value(operator, row) for row in rows]

    def values(self, operator: Operator) -> list[Value]:
        return self._values[operator.name]

    def _value(self, operator: Operator, row: int) -> Value:
        match operator:
            case Input() | Data():
                return self._compiled.value(operator, row)
            case Format():
                return self._fill(operator.text, operator.name, row)
            case Lambda():
                values = [self._read(operator.name, row, name) for name in operator.arguments]
                function = self._functions[operator.function]
                return function(*(list(v) if isinstance(v, tuple) else v for v in values))
            case Llm():
                outputs = self._model(self._call(operator, row), operator.name, row)
                assert len(outputs) == operator.sampling.n, f"{operator.name!r}: {len(outputs)}"
                return outputs[0] if operator.sampling.n == 1 else outputs
            case Slice() | Output():
                return self._read(operator.name, row, operator.source)
            case Concat():
                ((name, source_row),) = self._compiled.rows.dependencies(operator.name, row)
                return self._values[name][source_row]

    def _call(self, operator: Llm, row: int) -> Call:
        messages = tuple(
            (message.role, self._fill(message.content, operator.name, row))
            for message in self._compiled.plan.conversation(operator.name)
        )
        prompt = operator.prompt
        return Call(
            messages=messages,
            prompt=None if prompt is None else self._fill(prompt, operator.name, row),
            sampling=operator.sampling,
            model=operator.model,
        )

    def _fill(self, text: Text, name: str, row: int) -> str:
        def value_of(reference: Reference) -> str:
            value = self._read(name, row, reference.operator)
            return value if isinstance(value, str) else value[reference.choice]

        return render(text, value_of)

    def _read(self, name: str, row: int, input_name: str) -> Value:
        return self._values[input_name][self._compiled.rows.source_row(name, row, input_name)]
