"""Prometheus metrics of workflow runs, by workflow and operator.

With several API servers upstream's ``/metrics`` reads files of all of them, which hold upstream's
own metrics alone; these are served where one API server is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from helium.runtime.events import CallFinished, CallStarted, RowFailed
from helium.runtime.run import Run
from vllm_helium.bounded_series import MAX_SERIES, BoundedSeries

_METRICS = {
    "num_calls": ("calls", "Calls that engines answered"),
    "num_shared": ("shared_calls", "Calls that an equal call under way answered"),
    "num_cache_hits": ("prompt_cache_hits", "Calls that the prompt cache answered"),
    "num_failures": ("failures", "Rows that failed by themselves"),
    "num_prompt_tokens": ("prompt_tokens", "Prompt tokens of calls"),
    "num_cached_tokens": ("cached_tokens", "Prompt tokens found in the prefix cache"),
    "num_output_tokens": ("output_tokens", "Tokens generated"),
    "call_seconds": ("call_seconds", "Seconds between a call's start and its end, summed"),
}


class OperatorTotals(msgspec.Struct):
    """What one operator did since the server started; ``call_seconds`` in seconds."""

    num_calls: int = 0
    num_shared: int = 0
    num_cache_hits: int = 0
    num_failures: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    call_seconds: float = 0.0

    def add(self, more: OperatorTotals) -> None:
        """Adds another operator's totals."""
        for field in self.__struct_fields__:
            setattr(self, field, getattr(self, field) + getattr(more, field))


class WorkflowMetrics(Collector):
    """Counts the events of runs; Prometheus collects from it."""

    def __init__(self, max_series: int = MAX_SERIES) -> None:
        self._series = BoundedSeries(OperatorTotals, max_series)
        self._runs: dict[str, int] = {}

    async def follow(self, workflow: str, run: Run) -> None:
        """Counts a run from here to its end."""
        started: dict[tuple[str, int], float] = {}
        async for event in run.events():
            if isinstance(event, CallStarted):
                started[event.operator, event.row] = time.perf_counter()
            elif isinstance(event, CallFinished):
                begun = started.pop((event.operator, event.row), None)
                seconds = 0.0 if begun is None else time.perf_counter() - begun
                self._series.of((workflow, event.operator)).add(_totals_of(event, seconds))
            elif isinstance(event, RowFailed):
                started.pop((event.operator, event.row), None)
                self._series.of((workflow, event.operator)).add(OperatorTotals(num_failures=1))
        self._runs[run.status] = self._runs.get(run.status, 0) + 1

    def collect(self) -> Iterator[Metric]:
        """Yields one family per metric; called by Prometheus, on any thread."""
        series = self._series.items()
        for field, (name, text) in _METRICS.items():
            family = CounterMetricFamily(
                f"vllm:helium_workflow_{name}", f"{text}.", labels=["workflow", "operator"]
            )
            for labels, totals in series:
                family.add_metric(list(labels), getattr(totals, field))
            yield family
        runs = CounterMetricFamily(
            "vllm:helium_workflow_runs", "Runs that ended, by status.", labels=["status"]
        )
        for status, count in list(self._runs.items()):
            runs.add_metric([status], count)
        yield runs


def _totals_of(event: CallFinished, seconds: float) -> OperatorTotals:
    return OperatorTotals(
        num_calls=event.origin == "engine",
        num_shared=event.origin == "shared",
        num_cache_hits=event.origin == "prompt_cache",
        num_prompt_tokens=event.num_prompt_tokens,
        num_cached_tokens=event.num_cached_tokens,
        num_output_tokens=event.num_output_tokens,
        call_seconds=seconds,
    )
