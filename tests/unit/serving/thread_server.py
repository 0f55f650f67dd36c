"""Our routes over an engine of this process, on a thread with an event loop of its own."""

import asyncio
import contextlib
import threading

import uvicorn

from vllm_helium.serving.workflow_service import WorkflowService


@contextlib.contextmanager
def serve_on_thread(app, engine, folder):
    """Serves an app with the workflow routes; yields the address."""

    async def program():
        service = WorkflowService(engine, None, folder)
        app.state.helium_workflows = service
        try:
            await server.serve()
        finally:
            await service.close()

    config = uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(program()))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
