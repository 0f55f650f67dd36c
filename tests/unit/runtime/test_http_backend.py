"""The HTTP engine: hints for those who know them, passing errors told from final ones."""

import asyncio
import threading
import time

import pytest

from helium import graphs, ops
from helium.errors import EngineError
from helium.plan.calls import Call
from helium.plan.operators import Sampling
from helium.runtime import (
    EngineUnavailable,
    ModelCall,
    RetryPolicy,
    Runtime,
    RuntimeOptions,
    http_backend,
)
from helium.runtime.http_backend import HttpBackend, http_backends
from helium.templates.tokenizer import WordTokenizer
from tests.unit.cli.http_server import serve

VLLM_KEEPS_S = 5.0
"""How long vLLM keeps a connection open on which no request comes, by default."""


@pytest.fixture
def server():
    with serve() as running:
        yield running


def chat(text, **sampling):
    return ModelCall(Call((("user", text),), None, Sampling(**sampling), None))


def ask(server, request, **options):
    async def main():
        backend = HttpBackend(server.url, **options)
        try:
            return await backend.call(request)
        finally:
            await backend.close()

    return asyncio.run(main())


def build():
    draft = ops.llm([ops.Msg("user", ops.placeholder("question"))], name="draft")
    return graphs.build({"out": ops.llm([ops.Msg("user", ["of ", draft])], name="final")})


def execute(server, batch, **options):
    async def main():
        backend = HttpBackend(server.url)
        async with Runtime(backend, WordTokenizer(), options=RuntimeOptions(**options)) as runtime:
            result = await runtime.run(build(), batch)
        await backend.close()
        return result

    return asyncio.run(main())


def test_an_answer_has_texts_and_tokens(server):
    answer = ask(server, chat("hi", n=2, temperature=1.0))
    assert answer.texts == ("<hi>", "<hi>")
    tokens = (answer.num_prompt_tokens, answer.num_cached_tokens, answer.num_output_tokens)
    assert tokens == (11, 4, 5)


def test_the_plan_is_registered_first_and_every_call_says_where_it_belongs(server):
    result = execute(server, {"question": ["a", "b"]})
    assert result.outputs == {"out": ["<of <a>>", "<of <b>>"]}
    (plan,) = server.plans
    assert {operator["name"] for operator in plan["operators"]} == {"draft", "final"}
    places = {(b["workflow"]["operator"], b["workflow"].get("row", 0)) for b in server.bodies}
    assert places == {("draft", 0), ("draft", 1), ("final", 0), ("final", 1)}


def test_a_server_that_knows_no_plans_serves_all_the_same(server):
    server.knows_plans = False
    assert execute(server, {"question": ["a"]}).outputs == {"out": ["<of <a>>"]}


def test_a_server_with_several_engines_is_as_many_and_each_gets_its_plan_and_calls(server):
    server.num_engines = 2

    async def main():
        backends = await http_backends(server.url)
        async with Runtime(backends, WordTokenizer()) as runtime:
            result = await runtime.run(build(), {"question": [str(row) for row in range(8)]})
        for backend in backends:
            await backend.close()
        return result

    assert len(asyncio.run(main()).outputs["out"]) == 8
    # Plans name none themselves, so of each rank there is one request without.
    assert sorted(rank for rank, plan in server.ranks if not plan) == ["0", "1"]
    calls = [rank for rank, plan in server.ranks if plan]
    assert len(calls) == 16 and set(calls) == {"0", "1"}


@pytest.mark.parametrize("num_engines", [0, 1])
def test_any_other_server_is_one_engine_and_chooses_by_itself(server, num_engines):
    server.num_engines = num_engines

    async def main():
        (backend,) = await http_backends(server.url)
        await backend.call(chat("hi"))
        await backend.close()

    asyncio.run(main())
    assert server.ranks == [(None, None)]


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_status_that_may_pass_is_said_to(server, status):
    server.failures = [status]
    with pytest.raises(EngineUnavailable, match=f"status {status}"):
        ask(server, chat("hi"))
    assert len(server.bodies) == 1  # whoever calls decides on another attempt


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_status_that_will_not_pass_is_final(server, status):
    server.failures = [status]
    with pytest.raises(EngineError, match=f"status {status}") as caught:
        ask(server, chat("hi"))
    assert not isinstance(caught.value, EngineUnavailable)


def test_a_server_too_slow_may_be_faster_later(server):
    server.gate.clear()
    with pytest.raises(EngineUnavailable, match="timed out"):
        ask(server, chat("hi"), timeout_s=0.1)
    server.gate.set()


def test_a_server_that_restarts_in_the_middle_costs_no_row():
    """It dies with calls under way and is back at the same address a moment later."""
    with serve() as first:
        first.gate.clear()
        results = []
        retries = RetryPolicy(max_attempts=30, base_delay_s=0.05, max_delay_s=0.2)
        rows = [f"q{row}" for row in range(5)]
        thread = threading.Thread(
            target=lambda: results.append(execute(first, {"question": rows}, retries=retries))
        )
        thread.start()
        while len(first.bodies) < 5:
            time.sleep(0.01)
        first.die()
    with serve(port=first.server_port) as second:
        thread.join(60)
        assert len(second.bodies) == 10
    (result,) = results
    assert result.failures == []
    assert result.outputs == {"out": [f"<of <{row}>>" for row in rows]}


@pytest.mark.parametrize("is_kept", [True, False])
def test_an_unused_connection_is_given_up_before_the_server_closes_it(server, monkeypatch, is_kept):
    assert http_backend._IDLE_CONNECTION_S < VLLM_KEEPS_S
    monkeypatch.setattr(http_backend, "_IDLE_CONNECTION_S", 3600.0 if is_kept else 0.0)
    ports = []
    reply = server.RequestHandlerClass._reply

    def noted(handler, *arguments):
        ports.append(handler.client_address[1])
        reply(handler, *arguments)

    monkeypatch.setattr(server.RequestHandlerClass, "_reply", noted)

    async def main():
        backend = HttpBackend(server.url, model="served")
        await backend.call(chat("a"))
        await asyncio.sleep(0.001)  # a connection used at this very moment is not unused
        await backend.call(chat("b"))
        await backend.close()

    asyncio.run(main())
    assert len(set(ports)) == (1 if is_kept else 2)
