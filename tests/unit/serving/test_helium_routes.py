"""What a server started with Helium mounts, starts and ends, over an engine that never answers."""

import argparse
import asyncio
import contextlib
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY

from helium.runtime import RunStore
from tests.unit.serving.app import register
from tests.unit.serving.test_workflow_routes import graph
from vllm_helium.integration.helium_routes import register_helium_routes
from vllm_helium.models.tiny import make_tiny_llama


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(make_tiny_llama(tmp_path_factory.mktemp("m") / "t"))
    model = SimpleNamespace(served_model_name="tiny", max_model_len=64)
    observability = SimpleNamespace(otlp_traces_endpoint=None)
    config = SimpleNamespace(helium_config=object(), observability_config=observability)
    return SimpleNamespace(
        get_tokenizer=lambda: tokenizer,
        model_config=model,
        vllm_config=config,
        errored=False,
        shutdown=lambda timeout: None,
    )


def serve(client, helium, num_servers=1):
    """Starts and ends a server; returns the status of the routes and the names of our metrics."""

    async def main():
        app = FastAPI()
        app.state.engine_client = client
        args = argparse.Namespace(helium=helium, api_server_count=num_servers)
        register_helium_routes(app, args)
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://s") as http:
                answer = await http.get("/v1/workflows")
            return answer.status_code, {metric.name for metric in REGISTRY.collect()}

    return asyncio.run(main())


def test_runs_are_left_off_before_the_engine_is_shut_down(client, tmp_path, monkeypatch):
    async def never(*args, **kwargs):
        calls.append(args)
        await asyncio.sleep(1000)
        yield

    def shut_down(timeout):
        with contextlib.closing(RunStore(tmp_path / "runs.db")) as store:
            statuses.append((store.info("r").status, timeout))

    calls, statuses = [], []
    monkeypatch.setattr(client, "generate", never, raising=False)
    monkeypatch.setattr(client, "shutdown", shut_down)
    monkeypatch.setattr(client.vllm_config, "helium_config", None)  # it knows no plans

    async def main():
        app = FastAPI()
        app.state.engine_client = client
        register_helium_routes(app, argparse.Namespace(helium={"state_dir": str(tmp_path)}))
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://s") as http:
                path = await register(http, graph())
                body = {"inputs": {"topic": ["a", "b"]}, "run": "r"}
                assert (await http.post(path + "/runs", json=body)).status_code == 202
                while len(calls) < 2:
                    await asyncio.sleep(0)
                # As upstream does it, on SIGTERM.
                await asyncio.to_thread(client.shutdown, timeout=3)
                assert statuses == [("interrupted", 3)]
                assert (await http.get(path + "/runs/r")).json()["failures"] == []
                refused = await http.post(path + "/runs", json=body)
                assert refused.status_code == 503 and "shuts down" in refused.text

    asyncio.run(asyncio.wait_for(main(), 120))
    client.shutdown(timeout=4)
    assert len(statuses) == 2, "as before"


def ours(names):
    return {name for name in names if name.startswith("vllm:helium_")}


def test_the_routes_and_metrics_are_there_while_the_server_serves(client):
    status, names = serve(client, {})
    assert status == 200 and "vllm:helium_workflow_calls" in ours(names)
    assert not ours({metric.name for metric in REGISTRY.collect()})


def test_without_helium_nothing_is_mounted(client):
    status, names = serve(client, None)
    assert status == 404 and not ours(names)


def test_several_servers_need_a_folder_they_share(client, tmp_path):
    assert serve(client, {}, num_servers=2)[0] == 503
    assert serve(client, {"state_dir": str(tmp_path)}, num_servers=2)[0] == 200
    assert (tmp_path / "runs.db").exists() and (tmp_path / "workflows.db").exists()


def test_a_prompt_cache_is_opened_where_it_is_asked_for(client, tmp_path, monkeypatch):
    from vllm_helium import model_revision

    monkeypatch.setattr(model_revision, "model_revision", lambda *args: "m")
    path = tmp_path / "prompts.db"
    assert serve(client, {"prompt_cache": str(path), "prompt_cache_mib": 1})[0] == 200
    assert path.exists()
