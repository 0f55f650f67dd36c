"""What the report consists of: one entry per question, named on the command line.

The questions are those of the paper's evaluation (Helium, §7) and ours beside them: every workflow
as published is next to one whose agents are all distinct, because merging equal branches is the
largest single gain where there are any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.baselines.systems import SYSTEMS, system
from benchmarks.report.cases import Case
from benchmarks.simulated_run import Setting
from benchmarks.workflows import WORKFLOWS

BASELINES = (
    "op_wise", "random", "langgraph", "langgraph-1024", "dataflow", "parrot", "lspf", "kvflow",
)  # fmt: skip
"""Without ``query_wise``, which takes a step per token and sequence: it is asked for by entry."""

MAIN = ("langgraph", "lspf", "kvflow", "helium")
LARGE = ("langgraph", "kvflow", "helium")
"""Where a run takes a minute or more."""

WARM_ONLY = ("helium-no-prune", "helium-no-prompt-cache")
"""Switches that do something only where a day before has been run."""

ABLATIONS = tuple(name for name in SYSTEMS if name.startswith("helium-") and name not in WARM_ONLY)
SWITCHES_OF_THE_ENGINE = tuple(
    name for name in ABLATIONS if name not in ("helium-no-cse", "helium-scheduling-only")
)
"""Agents that are all different leave nothing to merge."""

PRIMITIVES = (
    "mapreduce-mmlu", "mapreduce-tatqa", "debate-mmlu", "debate-tatqa", "reflection-tatqa",
    "iterative-amazon", "parallel-amazon",
)  # fmt: skip
TWICE_OVERSUBSCRIBED = {False: 32_308, True: 59_384}
"""KV blocks that hold half of what Trading-8b with 16 rows has in use at its peak, where every call
is sent as soon as it can be and nothing bounds the cache (64,616 blocks as published, 118,769 with
all agents distinct). The device itself holds 23,574."""

UNBOUNDED = 150_000
"""KV blocks that hold all of it, caches included."""


@dataclass(frozen=True)
class Group:
    """Systems side by side on one setting: one table.

    Attributes:
        label: The setting in a word, for plots.
    """

    label: str
    setting: Setting
    systems: tuple[str, ...]

    def cases(self) -> list[Case]:
        """Returns the runs of the table."""
        return [Case(self.setting, system(name)) for name in self.systems]


@dataclass(frozen=True)
class Entry:
    """One question.

    Attributes:
        question: What the entry answers.
        source: What it corresponds to.
        groups: Its tables; simulated.
        command: A benchmark module with its arguments that answers it instead; ``{output}`` stands
            for the JSON file it writes.
    """

    name: str
    question: str
    source: str
    groups: tuple[Group, ...] = ()
    command: tuple[str, ...] = ()

    def with_seed(self, seed: int) -> Entry:
        """Returns the entry with other texts and answers."""
        settings = (replace(group.setting, seed=seed) for group in self.groups)
        groups = zip(self.groups, settings, strict=True)
        return replace(self, groups=tuple(replace(group, setting=s) for group, s in groups))


def _both(label: str, systems: Sequence[str], **setting: object) -> tuple[Group, ...]:
    """The setting as published and with all agents distinct."""
    return tuple(
        Group(
            f"{label}{' distinct' if is_distinct else ''}",
            Setting(is_distinct=is_distinct, **setting),  # type: ignore[arg-type]
            tuple(systems),
        )
        for is_distinct in (False, True)
    )


def _trading(
    label: str, systems: Sequence[str], branches: int = 8, **setting: object
) -> tuple[Group, ...]:
    return _both(label, systems, workflow=f"trading-{branches}b", **setting)


_ENTRIES = (
    Entry(
        "trading",
        "Trading-8b, 16 rows, on one engine and two: every system",
        "Helium, §7, end-to-end workflow",
        (
            # On one engine Parrot's dispatch has nothing to choose: it is the plain dataflow.
            *_trading(
                "1 engine",
                (*(name for name in BASELINES if name != "parrot"), "helium"),
                rows=16,
                has_trace=True,
            ),
            *_trading("2 engines", (*BASELINES, "helium"), rows=16, num_engines=2),
        ),
    ),
    Entry(
        "ablation",
        "What every switch is worth, Trading-8b, 16 rows",
        "Helium, §7, ablation",
        (
            # With the trace, as in "trading": our own run is then the same one.
            *_trading("as published", ("helium", *ABLATIONS), rows=16, has_trace=True)[:1],
            *_trading("all", ("helium", *SWITCHES_OF_THE_ENGINE), rows=16, has_trace=True)[1:],
            *_trading("day 2", ("langgraph", "helium", *WARM_ONLY), rows=16, is_warm=True)[:1],
        ),
    ),
    Entry(
        "scheduling",
        "Scheduling alone: every call as written, KV for half of what is in use at once",
        "Helium, §7, scheduling with the caches off",
        tuple(
            Group(
                f"2x oversubscribed{' distinct' if is_distinct else ''}",
                Setting("trading-8b", 16, is_distinct, num_blocks=num_blocks, has_trace=True),
                ("langgraph", "langgraph-1024", "lspf", "kvflow", "helium-scheduling-only"),
            )
            for is_distinct, num_blocks in TWICE_OVERSUBSCRIBED.items()
        ),
    ),
    Entry(
        "bounds",
        "What no scheduling or eviction can beat: KV for everything, Trading-8b, 16 rows",
        "ours",
        _trading(
            "unbounded KV",
            ("langgraph", "dataflow", "helium", "helium-scheduling-only"),
            rows=16,
            num_blocks=UNBOUNDED,
        ),
    ),
    Entry(
        "makespan-bound",
        "What no schedule on one engine can beat: Trading-8b, 16 rows",
        "ours",
        command=("benchmarks.lower_bound", "--rows", "16", "--both", "--output", "{output}"),
    ),
    Entry(
        "seeds",
        "Other texts and other answers: Trading-8b, 16 rows, a second seed",
        "ours",
        _trading("seed 1", ("langgraph", "langgraph-1024", "kvflow", "helium"), rows=16, seed=1),
    ),
    Entry(
        "ordinary",
        "Traffic that knows nothing of workflows, beside stock vLLM",
        "ours",
        command=("benchmarks.ordinary_traffic", "--output", "{output}"),
    ),
    Entry(
        "query-wise",
        "One call after the other, as a script would: Trading-8b, 8 rows",
        "Helium, §7, vLLM query-wise",
        _trading("query-wise", ("query_wise", "langgraph", "helium"), rows=8)[:1],
    ),
    Entry(
        "sensitivity",
        "How the ratios depend on the device model and the budget of tokens per step",
        "ours",
        (
            *_trading("serial device", MAIN, rows=16, is_serial=True),
            *_trading(
                "budget",
                (
                    "langgraph",
                    'langgraph:{"max_num_batched_tokens": 768}',
                    'langgraph:{"max_num_batched_tokens": 2048}',
                    'langgraph:{"max_num_batched_tokens": 8192}',
                    "helium",
                    'helium:{"max_num_batched_tokens": 768}',
                    'helium:{"max_num_batched_tokens": 2048}',
                    'helium:{"max_num_batched_tokens": 8192}',
                ),
                rows=16,
            ),
        ),
    ),
    Entry(
        "primitives",
        "The seven primitive workflows, each with its own number of rows",
        "Helium, §7, primitive workflows",
        (
            *_both("mapreduce-mmlu", MAIN, workflow="mapreduce-mmlu"),
            # The others' agents are distinct as published.
            *(Group(name, Setting(name), MAIN) for name in PRIMITIVES[1:]),
        ),
    ),
    Entry(
        "sharing",
        "Debates whose prompts share more and more, 100 rows",
        "Helium, §7, prefix-sharing sweep",
        tuple(Group(name, Setting(name), MAIN) for name in WORKFLOWS if "sharing" in name),
    ),
    Entry(
        "batch-80",
        "Trading-8b, 80 rows, on one engine and two",
        "Helium, §7, Trading by batch size",
        (
            *_trading("80 rows, 1 x", LARGE, rows=80),
            *_trading("80 rows, 2 x", ("langgraph", "helium"), rows=80, num_engines=2),
        ),
    ),
    Entry(
        "batches",
        "Trading-8b by rows, on one engine and two",
        "Helium, §7, Trading by batch size",
        tuple(
            group
            for engines in (1, 2)
            for rows in (8, 32)
            for group in _trading(f"{rows} rows, {engines} x", MAIN, rows=rows, num_engines=engines)
        ),
    ),
    Entry(
        "branches",
        "Trading by branches, 16 rows",
        "Helium, §7, Trading by workflow size",
        tuple(
            group
            for branches in (4, 12, 16)
            for group in _trading(f"{branches} branches", MAIN, branches, rows=16)
        ),
    ),
    Entry(
        "rounds",
        "Trading-8b by rounds of debate, 16 rows",
        "ours",
        tuple(
            group
            for rounds in (3, 4, 5)
            for group in _trading(f"{rounds} rounds", MAIN, rows=16, num_rounds=rounds)
        ),
    ),
    Entry(
        "models",
        "Other models and devices, Trading-8b, 16 rows",
        "Helium, §7, other models",
        tuple(
            group
            for model, device in (
                ("Qwen3-14B", "H100-80GB"),
                ("Llama-3.1-8B", "H100-80GB"),
                ("Qwen3-32B", "H200"),
                ("Qwen3-8B", "H100-NVL"),
            )
            for group in _trading(f"{model} {device}", MAIN, rows=16, model=model, device=device)
        ),
    ),
    Entry(
        "planning",
        "Time and memory of planning",
        "Helium, §7, overhead",
        command=("benchmarks.planner.planning_time", "--repeats", "5", "--output", "{output}"),
    ),
    Entry(
        "optimality",
        "How far schedules are from the proven optimum",
        "Helium, §7, optimality",
        command=("benchmarks.planner.optimality", "--timeout-s", "20", "--output", "{output}"),
    ),
)

ENTRIES: Mapping[str, Entry] = {entry.name: entry for entry in _ENTRIES}
CORE = (
    "trading", "scheduling", "primitives", "batch-80", "ordinary", "ablation", "seeds", "bounds",
    "makespan-bound",
)  # fmt: skip
"""What is reported if no entry is named, in order of importance: where time runs out, the last
ones are left out."""
