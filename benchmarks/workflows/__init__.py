"""The benchmark workflows, with synthetic rows of the right length.

``WORKFLOWS[name](size=..., distinct=..., seed=..., scale=...)`` gives a ``Workload``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from benchmarks.workflows import (
    debate,
    iterative,
    mapreduce,
    parallel,
    reflection,
    sharing,
    trading,
)
from benchmarks.workflows.workload import Workload

WORKFLOWS: Mapping[str, Callable[..., Workload]] = {
    "mapreduce-mmlu": mapreduce.build_mmlu,
    "mapreduce-tatqa": mapreduce.build_tatqa,
    "debate-mmlu": debate.build_mmlu,
    "debate-tatqa": debate.build_tatqa,
    "reflection-tatqa": reflection.build_tatqa,
    "iterative-amazon": iterative.build_amazon,
    "parallel-amazon": parallel.build_amazon,
    **{f"trading-{n}b": partial(trading.build, num_branches=n) for n in (4, 8, 12, 16)},
    **{f"sharing-{p}": partial(sharing.build, profile=p) for p in sharing.PROFILES},
}

__all__ = ["WORKFLOWS", "Workload"]
