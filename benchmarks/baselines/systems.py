"""The systems a benchmark compares: who plans, in which order calls come, on which engine.

``system("helium")`` and the other names of ``SYSTEMS`` are complete systems; any of them takes
overrides: ``system('helium:{"helium": {"order": "fcfs"}}')`` turns one field of the engine's
configuration, ``system('helium:{"rules_off": ["eliminate_common_subgraphs"]}')`` a rule of the
optimizer. That is how ablations are named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from helium.errors import ConfigError


@dataclass(frozen=True)
class System:
    """One way to run a workflow.

    Attributes:
        source: Where it is described.
        order: How calls reach the engines: ``plan`` (this repository's runtime, on the planner's
            schedule), ``dataflow`` (as soon as ready), ``parrot``, or an order of
            ``benchmarks.baselines.orders``. All but ``plan`` run the workflow as written.
        has_context: Whether engines learn the plan and where each call belongs in it.
        is_optimized: Whether the optimizer's rules run; for ``plan`` only.
        rules_off: Rules that do not.
        has_prompt_cache: Whether outputs of earlier runs are used.
        scheduler_cls: The engine's scheduler, if not vLLM's.
        helium: Fields of ``HeliumConfig``; ``None`` for stock vLLM.
        kv_connector: Fields of vLLM's ``KVTransferConfig``, for a KV connector of its own.
        max_num_batched_tokens: The engine's budget of tokens per step.
    """

    name: str
    source: str
    order: str = "dataflow"
    has_context: bool = False
    is_optimized: bool = False
    rules_off: tuple[str, ...] = ()
    has_prompt_cache: bool = False
    scheduler_cls: str | None = None
    helium: Mapping[str, Any] | None = None
    kv_connector: Mapping[str, Any] | None = None
    max_num_batched_tokens: int = 4_096


_OURS = {
    "source": "this repository",
    "order": "plan",
    "has_context": True,
    "is_optimized": True,
    "has_prompt_cache": True,
    "helium": {},
}
_PAPER = "order as Helium, §7 describes it"
_WRITTEN = "written from its paper, see the module"
_SAME_WORK = ("eliminate_common_subgraphs", "merge_equal_rows")

SYSTEMS: Mapping[str, System] = {
    system.name: system
    for system in (
        System("query_wise", _PAPER, order="query_wise"),
        System("op_wise", _PAPER, order="op_wise"),
        System(
            "random", _PAPER, scheduler_cls="benchmarks.policies.random_order.RandomOrderScheduler"
        ),
        System("langgraph", "supersteps as LangGraph documents them", order="langgraph"),
        # vLLM's budget of tokens per step bounds how long a prompt holds up those that decode.
        System(
            "langgraph-1024",
            "the same with a smaller budget of tokens per step",
            order="langgraph",
            max_num_batched_tokens=1_024,
        ),
        System("dataflow", "every call as soon as it can be made, on stock vLLM"),
        System("parrot", _WRITTEN, order="parrot"),
        System("lspf", _WRITTEN, scheduler_cls="benchmarks.policies.lspf.LspfScheduler"),
        System(
            "kvflow",
            _WRITTEN,
            has_context=True,
            scheduler_cls="benchmarks.policies.kvflow.KvFlowScheduler",
        ),
        System("helium", **_OURS),
        System("helium-no-prune", **{**_OURS, "rules_off": ("prune_unused_operators",)}),
        System("helium-no-cse", **{**_OURS, "rules_off": _SAME_WORK}),
        System("helium-no-prompt-cache", **{**_OURS, "has_prompt_cache": False}),
        System("helium-no-order", **{**_OURS, "helium": {"order": "fcfs"}}),
        System("helium-order-by-rank", **{**_OURS, "helium": {"order": "plan"}}),
        System("helium-strict-rows", **{**_OURS, "helium": {"stage_rows": 0}}),
        System("helium-no-pacing", **{**_OURS, "helium": {"prefill_tokens": 0}}),
        System("helium-no-fair-share", **{**_OURS, "helium": {"fair_share": False}}),
        System("helium-no-victims", **{**_OURS, "helium": {"victims": "last"}}),
        # All blocks compete by recency alone: nothing is kept because a plan needs it next.
        System("helium-no-next-use", **{**_OURS, "helium": {"ordinary_share": 1.0}}),
        System(
            "helium-no-proactive-kv",
            **{**_OURS, "helium": {"prewarm": False, "lease_share": 0.0}},
        ),
        System("helium-no-partial", **{**_OURS, "helium": {"min_partial_tokens": 0}}),
        System(
            "helium-no-prompt-tails",
            **{**_OURS, "helium": {"prompt_tails": False, "hold_tokens": 0}},
        ),
        System("helium-stock-index", **{**_OURS, "helium": {"prefix_index": "stock"}}),
        System("helium-no-plan", **{**_OURS, "has_context": False}),
        System("helium-on-stock", **{**_OURS, "has_context": False, "helium": None}),
        # Every call as written, none shared: what placement, order and eviction do by themselves.
        System(
            "helium-scheduling-only",
            _OURS["source"],
            order="dataflow",
            has_context=True,
            helium={},
        ),
    )
}


def system(name: str) -> System:
    """Returns a system by name, with overrides in JSON after a colon.

    Raises:
        ConfigError: The name or a field is unknown, or what follows the colon is no JSON object.
    """
    base, colon, overrides = name.partition(":")
    if base not in SYSTEMS:
        raise ConfigError(f"unknown system {base!r}; known: {list(SYSTEMS)}")
    if not colon:
        return SYSTEMS[base]
    try:
        changes = json.loads(overrides)
    except json.JSONDecodeError as error:
        raise ConfigError(f"system {name!r}: {error} after the colon; give a JSON object") from None
    known = [field.name for field in fields(System) if field.name not in ("name", "source")]
    unknown = sorted(set(changes) - set(known)) if isinstance(changes, dict) else ["no object"]
    if unknown:
        raise ConfigError(f"system {name!r}: unknown {unknown}; expected an object of {known}")
    if "rules_off" in changes:
        changes["rules_off"] = tuple(changes["rules_off"])
    return replace(SYSTEMS[base], name=name, **changes)
