"""Our routes over an engine that answers by itself, in this process."""

import contextlib
import json

import httpx
from fastapi import FastAPI

from tests.unit.runtime.engines import Engine
from vllm_helium.serving.workflow_routes import router
from vllm_helium.serving.workflow_service import WorkflowService


@contextlib.asynccontextmanager
async def serving(folder=None, engine=None, functions=None, resume=False):
    """Yields a client of the routes, with ``client.service`` and ``client.engine``."""
    app = FastAPI()
    app.include_router(router)
    engine = engine or Engine()
    options = {} if functions is None else {"functions": functions}
    service = WorkflowService(engine, None, folder, **options)
    app.state.helium_workflows = service
    if resume:
        await service.resume_all()
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        client.service, client.engine, client.app = service, engine, app
        try:
            yield client
        finally:
            await service.close()


async def register(client, graph, name="test"):
    """Registers a graph; returns the path of its workflow."""
    body = {"name": name, "plan": json.loads(graph.plan.to_json())}
    answer = await client.post("/v1/workflows", json=body)
    assert answer.status_code == 200, answer.text
    return f"/v1/workflows/{answer.json()['id']}"
