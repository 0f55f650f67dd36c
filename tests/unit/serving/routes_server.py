"""Our routes over an engine that answers by itself, as a process that can be killed.

    python -m tests.unit.serving.routes_server PORT STATE_DIR

``/metrics`` counts the engine's calls as a real server does.
"""

import asyncio
import contextlib
import sys
import zlib

import uvicorn
from fastapi import FastAPI, Response

from tests.unit.runtime.engines import Engine
from vllm_helium.serving.workflow_routes import router
from vllm_helium.serving.workflow_service import WorkflowService

MAX_CALL_S = 1.0
"""Seconds the slowest call takes; how long one takes follows from its prompt."""


class Uneven(Engine):
    """Answers some calls much sooner than others, so that a run is hardly ever between two."""

    async def call(self, request):
        text = request.call.messages[-1][1]
        await asyncio.sleep(MAX_CALL_S * zlib.crc32(text.encode()) / 2**32)
        return await super().call(request)


def short(call):
    return (f"{call.messages[-1][1][:60]}!",)


def build(folder):
    app = FastAPI()
    app.include_router(router)
    engine = Uneven(0.0, short)

    @contextlib.asynccontextmanager
    async def lifespan(app):
        service = WorkflowService(engine, None, folder)
        app.state.helium_workflows = service
        resuming = asyncio.create_task(service.resume_all())
        yield
        await resuming
        await service.close()

    @app.get("/health")
    def health():
        return {}

    @app.get("/metrics")
    def metrics():
        count = len(engine.requests)  # those that have their answer
        return Response(f'vllm:request_success_total{{finished_reason="stop"}} {count}\n')

    app.router.lifespan_context = lifespan
    return app


if __name__ == "__main__":
    uvicorn.run(build(sys.argv[2]), port=int(sys.argv[1]), log_level="warning")
