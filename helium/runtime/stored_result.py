"""The result of a run from what is written of it, without running anything."""

from __future__ import annotations

from collections.abc import Mapping

from helium.plan.interpret import Value
from helium.plan.operators import Concat, Format, Operator, Output, Slice
from helium.runtime.dataflow import Dataflow, Failed
from helium.runtime.events import CallFinished, RowFailed, RunStarted
from helium.runtime.result import CallCounts, RowFailure, RunResult
from helium.runtime.run_store import RunStore


def stored_result(store: RunStore, run: str) -> RunResult:
    """Returns what is done of a run: ``None`` for rows that failed or are not there yet.

    Counts are those of all its sittings; failures those of the last one.

    Raises:
        RunError: The run is unknown or cannot be read.
    """
    info = store.info(run)
    compiled = store.load(run).compiled
    counts = {operator.name: CallCounts() for operator in compiled.plan.llm_operators}
    failures: list[RowFailure] = []
    for _, event in store.events(run):
        if isinstance(event, RunStarted):
            failures.clear()
        elif isinstance(event, RowFailed):
            failures.append(RowFailure(event.operator, event.row, event.reason))
        elif isinstance(event, CallFinished):
            _count(counts[event.operator], event)
    flow = Dataflow(compiled)
    _compute(compiled.plan.by_name, flow)
    outputs: dict[str, list[Value | None]] = {}
    for output in compiled.plan.outputs:
        slots = [flow.slot(output.name, row) for row in range(compiled.rows.num_rows(output.name))]
        outputs[output.key] = [None if isinstance(slot, Failed) else slot for slot in slots]
    return RunResult(run, outputs, failures, counts, info.updated_at - info.created_at)


def _count(counts: CallCounts, event: CallFinished) -> None:
    if event.origin == "engine":
        counts.num_calls += 1
        counts.num_prompt_tokens += event.num_prompt_tokens
        counts.num_cached_tokens += event.num_cached_tokens
        counts.num_output_tokens += event.num_output_tokens
    elif event.origin == "shared":
        counts.num_shared += 1
    else:
        counts.num_cache_hits += 1


def _compute(operators: Mapping[str, Operator], flow: Dataflow) -> None:
    """Fills in what follows from the values that are known; everything else stays away."""
    while (cell := flow.next_ready()) is not None:
        name, row = cell
        operator = operators[name]
        if flow.is_doomed(cell):
            flow.fail(name, row)
        elif isinstance(operator, Format):
            flow.finish(name, row, flow.template(operator.text).fill(row))
        elif isinstance(operator, (Slice, Concat, Output)):
            flow.finish(name, row, flow.passed_on(operator, row))
        else:
            flow.fail(name, row)
