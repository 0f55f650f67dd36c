"""A scrape shows what the engines counted, and no engine can hold it up."""

import asyncio
from types import SimpleNamespace

from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from prometheus_client import CollectorRegistry, generate_latest, make_asgi_app

from vllm_helium.bounded_series import OTHER
from vllm_helium.prefix_cache.miss_counts import ORDINARY, MissCounts
from vllm_helium.serving.cache_metrics import CacheMetrics, RefreshBeforeScrape
from vllm_helium.tiering.figures import TierFigures

TREE = {
    "index": "tree",
    "num_nodes": 7,
    "num_template_leases": 2,
    "blocks": {"dead": 3},
    "evicted": {"lru": 4},
}


def match(num_tokens, reason):
    return SimpleNamespace(num_tokens=num_tokens, num_host_tokens=0, reason=reason, evicted_as=None)


def engines(*answers):
    """A client of several engines; an answer that is an exception is raised."""

    async def call(method, name):
        assert (method, name) == ("helium_rpc", "metrics")
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return list(answers)

    return SimpleNamespace(engine_core=SimpleNamespace(call_utility_all_async=call))


def text_of(metrics):
    registry = CollectorRegistry()
    registry.register(metrics)
    return generate_latest(registry).decode()


def test_a_scrape_asks_every_engine_and_shows_its_counts():
    misses = MissCounts()
    misses.record(match(30, "never_seen"), 100, ("garden", "ask"))
    misses.record(match(50, "evicted"), 60, ("garden", "ask"))
    misses.record(match(0, "never_seen"), 8)
    answer = {"prefix_cache": TREE, "operators": misses.describe_operators()}
    stock = {"prefix_cache": {"index": "upstream"}, "operators": []}
    metrics, registry = CacheMetrics(), CollectorRegistry()
    registry.register(metrics)
    app = FastAPI()
    app.state.engine_client = engines(answer, stock)
    app.add_middleware(RefreshBeforeScrape, metrics=metrics, state=app.state)
    app.mount("/metrics", make_asgi_app(registry=registry))

    async def scrape():
        async with AsyncClient(transport=ASGITransport(app=app), base_url="http://s") as client:
            return (await client.get("/metrics/")).text

    lines = asyncio.run(scrape()).splitlines()
    name = "vllm:helium_prefix_cache_"
    ask = 'engine="0",operator="ask"'
    for line in (
        f'{name}hit_tokens_total{{{ask},workflow="garden"}} 80.0',
        f'{name}miss_tokens_total{{{ask},reason="never_seen",workflow="garden"}} 70.0',
        f'{name}miss_tokens_total{{{ask},reason="evicted",workflow="garden"}} 10.0',
        f'{name}miss_tokens_total{{engine="0",operator="",reason="never_seen",workflow=""}} 8.0',
        f'{name}nodes{{engine="0"}} 7.0',
        f'{name}template_leases{{engine="0"}} 2.0',
        f'{name}blocks{{class="dead",engine="0"}} 3.0',
        f'{name}evictions_total{{class="lru",engine="0"}} 4.0',
    ):
        assert line in lines
    assert not any('engine="1"' in line for line in lines)


def test_an_engine_that_is_down_or_silent_leaves_the_counts_of_the_last_scrape():
    asked = []

    async def never(*_):
        asked.append(1)
        await asyncio.Event().wait()

    async def main():
        metrics = CacheMetrics()
        await metrics.refresh(engines({"prefix_cache": TREE, "operators": []}))
        before = text_of(metrics)
        await metrics.refresh(engines(RuntimeError("dead")))
        assert text_of(metrics) == before
        silent = SimpleNamespace(engine_core=SimpleNamespace(call_utility_all_async=never))
        await metrics.refresh(silent, timeout_s=0.0)
        await metrics.refresh(silent, timeout_s=0.01)
        assert text_of(metrics) == before and len(asked) == 1
        metrics._asking.cancel()

    asyncio.run(main())


def test_operators_beyond_the_bound_are_counted_together():
    misses = MissCounts()
    misses.operators._max_series = 2
    for operator in (ORDINARY, ("w", "a"), ("w", "b"), ("w", "c")):
        misses.record(match(1, "never_seen"), 3, operator)
    rows = {row[:2]: row[2:] for row in misses.describe_operators()}
    assert rows == {
        ("w", "b"): (1, {"never_seen": 2}),
        ("w", "c"): (1, {"never_seen": 2}),
        OTHER: (2, {"never_seen": 4}),
    }


def test_a_host_tier_shows_what_it_moved_and_saved():
    counts = {
        "num_stored": 10,
        "num_loaded": 6,
        "num_prefetched": 4,
        "num_prefetches_used": 3,
        "num_prefetches_wasted": 1,
    }
    tier = TierFigures(num_waited_blocks=5, saved_s=1.5).describe(counts, block_bytes=100)
    answer = {"prefix_cache": {**TREE, "host": counts, "host_tier": tier}, "operators": []}
    metrics = CacheMetrics()
    asyncio.run(metrics.refresh(engines(answer)))
    text = text_of(metrics)
    labels = 'direction="loaded",engine="0",reason="prefetch"'
    for line in (
        f"vllm:helium_prefix_cache_host_blocks_total{{{labels}}} 4.0",
        f"vllm:helium_prefix_cache_host_bytes_total{{{labels}}} 400.0",
        'vllm:helium_prefix_cache_host_prefetches_total{engine="0",outcome="used"} 3.0',
        'vllm:helium_prefix_cache_host_overlap_ratio{engine="0"} 0.75',
        'vllm:helium_prefix_cache_host_saved_seconds{engine="0"} 1.5',
    ):
        assert line in text, line
    without = {"prefix_cache": TREE, "operators": []}
    asyncio.run(metrics.refresh(engines(without)))
    assert "host_blocks" not in text_of(metrics)
