"""Prometheus metrics of the engines' prefix caches, by engine, workflow, operator and reason.

The engines count; a scrape of ``/metrics`` asks them first. Nothing is asked in between. An engine
that is slow to answer or down holds no scrape up: then the counts of an earlier one are served.

With several API servers upstream's ``/metrics`` reads files of all of them, which hold upstream's
own metrics alone; these are served where one API server is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, MutableMapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vllm_helium.integration.engine_rpc import call_engines_async

logger = logging.getLogger(__name__)

REFRESH_TIMEOUT_S = 1.0
"""How long a scrape waits for the engines."""

_PREFIX = "vllm:helium_prefix_cache_"


class CacheMetrics(Collector):
    """What each engine last said about its prefix cache; Prometheus collects from it."""

    def __init__(self) -> None:
        self._engines: list[dict[str, Any]] = []
        self._asking: asyncio.Task[None] | None = None

    async def refresh(self, engine_client: Any, timeout_s: float = REFRESH_TIMEOUT_S) -> None:
        """Asks the engines; returns when they answered or after ``timeout_s`` seconds.

        Scrapes that overlap share one question, so that they do not pile up at a busy engine.
        """
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(engine_client))
        await asyncio.wait({self._asking}, timeout=timeout_s)

    async def _ask(self, engine_client: Any) -> None:
        try:
            self._engines = await call_engines_async(engine_client, "metrics")
        except Exception as error:
            logger.debug("Helium: an engine did not say its metrics: %r", error)

    def collect(self) -> Iterator[Metric]:
        """Yields one family per metric; called by Prometheus, on any thread."""
        engines = [(str(engine), answer) for engine, answer in enumerate(self._engines)]
        yield from _operator_metrics(engines)
        caches = [
            (engine, answer["prefix_cache"])
            for engine, answer in engines
            if answer["prefix_cache"]["index"] == "tree"
        ]
        yield from _tree_metrics(caches)
        yield from _host_tier_metrics([entry for entry in caches if "host_tier" in entry[1]])


class RefreshBeforeScrape:
    """ASGI middleware: ``GET /metrics`` waits for the engines' counts, all else passes through."""

    def __init__(self, app: Any, metrics: CacheMetrics, state: Any) -> None:
        self._app = app
        self._metrics = metrics
        self._state = state

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if path.rstrip("/") == "/metrics":
                await self._metrics.refresh(self._state.engine_client)
        await self._app(scope, receive, send)


def _operator_metrics(engines: list[tuple[str, dict[str, Any]]]) -> Iterator[Metric]:
    labels = ["engine", "workflow", "operator"]
    hits = CounterMetricFamily(
        _PREFIX + "hit_tokens", "Prompt tokens found in the prefix cache.", labels=labels
    )
    misses = CounterMetricFamily(
        _PREFIX + "miss_tokens",
        "Prompt tokens not found in the prefix cache, by why the lookup ended.",
        labels=[*labels, "reason"],
    )
    for engine, answer in engines:
        for workflow, operator, num_hit_tokens, num_miss_tokens in answer["operators"]:
            hits.add_metric([engine, workflow, operator], num_hit_tokens)
            for reason, num_tokens in num_miss_tokens.items():
                misses.add_metric([engine, workflow, operator, reason], num_tokens)
    yield hits
    yield misses


def _tree_metrics(caches: list[tuple[str, dict[str, Any]]]) -> Iterator[Metric]:
    nodes = GaugeMetricFamily(_PREFIX + "nodes", "Nodes of the tree.", labels=["engine"])
    leases = GaugeMetricFamily(
        _PREFIX + "template_leases", "Leased prefixes of templates.", labels=["engine"]
    )
    blocks = GaugeMetricFamily(
        _PREFIX + "blocks", "KV blocks by eviction class.", labels=["engine", "class"]
    )
    evictions = CounterMetricFamily(
        _PREFIX + "evictions", "Blocks evicted, by eviction class.", labels=["engine", "class"]
    )
    for engine, cache in caches:
        nodes.add_metric([engine], cache["num_nodes"])
        leases.add_metric([engine], cache["num_template_leases"])
        for name, count in cache["blocks"].items():
            blocks.add_metric([engine, name], count)
        for name, count in cache["evicted"].items():
            evictions.add_metric([engine, name], count)
    yield nodes
    yield leases
    yield blocks
    yield evictions


def _host_tier_metrics(caches: list[tuple[str, dict[str, Any]]]) -> Iterator[Metric]:
    labels = ["engine", "direction", "reason"]
    blocks = CounterMetricFamily(
        _PREFIX + "host_blocks", "Blocks moved to and from host memory.", labels=labels
    )
    moved = CounterMetricFamily(
        _PREFIX + "host_bytes", "Bytes moved to and from host memory, per worker.", labels=labels
    )
    prefetches = CounterMetricFamily(
        _PREFIX + "host_prefetches",
        "Prefetched blocks that were used, or given up unused.",
        labels=["engine", "outcome"],
    )
    overlap = GaugeMetricFamily(
        _PREFIX + "host_overlap_ratio",
        "Share of the moved blocks that no step waited for.",
        labels=["engine"],
    )
    saved = GaugeMetricFamily(
        _PREFIX + "host_saved_seconds",
        "Estimated seconds of computing saved by loads, the link's time taken off.",
        labels=["engine"],
    )
    for engine, cache in caches:
        tier, index = cache["host_tier"], cache["host"]
        for family, values in ((blocks, tier["moved_blocks"]), (moved, tier["moved_bytes"])):
            for direction, counts in values.items():
                for reason, count in counts.items():
                    family.add_metric([engine, direction, reason], count)
        for outcome in ("used", "wasted"):
            prefetches.add_metric([engine, outcome], index[f"num_prefetches_{outcome}"])
        overlap.add_metric([engine], tier["overlap_ratio"])
        saved.add_metric([engine], tier["saved_s"])
    if caches:
        yield from (blocks, moved, prefetches, overlap, saved)
