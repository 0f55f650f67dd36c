"""Hook ``helium-routes``: puts ``/v1/helium`` and ``/v1/workflows`` on the API server."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

from fastapi import FastAPI

from vllm_helium.config import HeliumConfig, make_helium_config
from vllm_helium.integration.openai_workflow_field import accept_workflows

logger = logging.getLogger(__name__)

_LEAVE_OFF_S = 60.0
"""How long the engine waits at its end until runs are left off; their checkpoints are written."""


def register_helium_routes(app: FastAPI, args: argparse.Namespace) -> None:
    """Adds our routes where the server was started with Helium; else does nothing.

    Cached tokens are part of every usage report then, without upstream's switch for it.
    """
    config = make_helium_config(getattr(args, "helium", None))
    if config is None:
        return
    from prometheus_client import REGISTRY

    from vllm_helium.serving.cache_metrics import CacheMetrics, RefreshBeforeScrape
    from vllm_helium.serving.routes import router
    from vllm_helium.serving.workflow_routes import router as workflow_router

    accept_workflows()
    args.enable_prompt_tokens_details = True
    app.include_router(router)
    app.include_router(workflow_router)
    metrics = CacheMetrics()
    app.add_middleware(RefreshBeforeScrape, metrics=metrics, state=app.state)
    serve = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(started: Any) -> AsyncIterator[Any]:
        async with serve(started) as state, _workflows(app, args, config):
            REGISTRY.register(metrics)
            try:
                yield state
            finally:
                REGISTRY.unregister(metrics)

    app.router.lifespan_context = lifespan


@contextlib.asynccontextmanager
async def _workflows(
    app: FastAPI, args: argparse.Namespace, config: HeliumConfig
) -> AsyncIterator[None]:
    """Runs workflows for as long as the server serves."""
    from prometheus_client import REGISTRY

    from helium.runtime import PromptCache
    from helium.templates.tokenizer import TransformersTokenizer
    from vllm_helium.async_backend import async_backends
    from vllm_helium.model_revision import EngineRevisions
    from vllm_helium.serving.workflow_service import WorkflowService, import_functions

    client = app.state.engine_client
    num_servers = getattr(args, "api_server_count", None) or 1
    if num_servers > 1 and not config.state_dir:
        logger.warning(
            "/v1/workflows is off: %d API servers need a place they share; set --helium-state-dir "
            "or --api-server-count 1",
            num_servers,
        )
        yield
        return
    import_functions(config.functions)
    models = getattr(app.state, "openai_serving_models", None)
    backends = async_backends(client, models)
    tokenizer = TransformersTokenizer(client.get_tokenizer())
    cache = revisions = None
    if config.prompt_cache:
        cache = PromptCache(config.prompt_cache, max_bytes=config.prompt_cache_mib << 20)
        revisions = EngineRevisions(client.vllm_config, client.get_tokenizer(), backends[0])
    service = WorkflowService(
        backends,
        tokenizer,
        config.state_dir or None,
        prompt_cache=cache,
        revision=revisions,
        has_spans=bool(client.vllm_config.observability_config.otlp_traces_endpoint),
    )
    app.state.helium_workflows = service
    REGISTRY.register(service.metrics)
    resuming = asyncio.create_task(service.resume_all())
    try:
        with _before_shutdown(client, service.leave_off):
            yield
    finally:
        resuming.cancel()
        await asyncio.gather(resuming, return_exceptions=True)
        REGISTRY.unregister(service.metrics)
        await service.close()


@contextlib.contextmanager
def _before_shutdown(client: Any, work: Callable[[], Coroutine[Any, Any, None]]) -> Iterator[None]:
    """Has something done before the engine is shut down.

    On SIGTERM upstream shuts the engine down first, which gives up every request under way, and
    only then the HTTP server with all that hangs on it.

    Args:
        work: Run on this event loop.
    """
    loop = asyncio.get_running_loop()
    shut_down = client.shutdown

    def shutdown(*args: Any, **kwargs: Any) -> None:
        if threading.get_ident() != own_thread:
            try:
                asyncio.run_coroutine_threadsafe(work(), loop).result(_LEAVE_OFF_S)
            except Exception:  # whatever it is, the engine must go
                logger.exception("what was under way could not be left off")
        shut_down(*args, **kwargs)

    own_thread = threading.get_ident()
    client.shutdown = shutdown
    try:
        yield
    finally:
        client.shutdown = shut_down
