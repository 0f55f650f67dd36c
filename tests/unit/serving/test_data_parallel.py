"""A server with data parallelism: each rank is an engine that plans and calls are placed on."""

import asyncio
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI

from benchmarks.workflows import mapreduce
from helium.protocol import EnginePlan, PlanOperator, decode_engine_plan
from helium.runtime import RetryPolicy, Runtime, RuntimeOptions
from helium.templates.tokenizer import WordTokenizer
from vllm_helium.async_backend import async_backends
from vllm_helium.models.tiny import make_tiny_llama
from vllm_helium.request import read_context
from vllm_helium.scheduler.plan_registry import PlanRegistry
from vllm_helium.serving.routes import router

PLAN = EnginePlan(version=1, workflow="w", operators=(PlanOperator(name="a", rank=0),))


class Core:
    """The client of several engine cores, of which each keeps its plans."""

    def __init__(self, num_ranks):
        self.core_engines = [rank.to_bytes(2, "little") for rank in range(num_ranks)]
        self.registries = [PlanRegistry(8, 1 << 20) for _ in range(num_ranks)]

    async def _call_utility_async(self, _, method, *args, engine):
        registry = self.registries[self.core_engines.index(engine)]
        if method == "list_plans":
            return registry.describe()
        return {"digest": registry.register(decode_engine_plan(*args))}

    async def call_utility_all_async(self, *args):
        return [await self._call_utility_async(*args, engine=e) for e in self.core_engines]


class Client:
    """An ``AsyncLLM`` that answers at once and notes each request's rank and context."""

    errored = False

    def __init__(self, tokenizer, num_ranks, helium=True):
        self.engine_core = Core(num_ranks)
        self.model_config = SimpleNamespace(served_model_name="tiny", max_model_len=8192)
        self.vllm_config = SimpleNamespace(helium_config=helium or None)
        self.get_tokenizer = lambda: tokenizer
        self.requests = []

    async def generate(self, prompt, params, request_id, lora_request=None, **more):
        self.requests.append((more, read_context(params.extra_args)))
        text = f"answer {len(prompt['prompt_token_ids'])}"
        choice = SimpleNamespace(finish_reason="stop", text=text, token_ids=[1])
        yield SimpleNamespace(
            outputs=[choice], prompt_token_ids=[1], num_cached_tokens=0, metrics=None
        )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(make_tiny_llama(tmp_path_factory.mktemp("m") / "t"))


def run_workflow(client, **options):
    workload = mapreduce.build_mmlu(6, scale=0.1, max_tokens=4)

    async def main():
        backends = async_backends(client)
        async with Runtime(backends, WordTokenizer(), **options) as runtime:
            return await runtime.run(workload.graph, workload.batch)

    result = asyncio.run(main())
    assert result.failures == []
    return result.outputs


def test_every_rank_gets_its_own_plan_and_the_calls_that_are_placed_on_it(tokenizer):
    client = Client(tokenizer, 2)
    outputs = run_workflow(client)
    for rank, registry in enumerate(client.engine_core.registries):
        (plan,) = registry.describe()
        contexts = [c for more, c in client.requests if more == {"data_parallel_rank": rank}]
        assert contexts and {context.plan for context in contexts} == {plan["digest"]}
    assert len(client.requests) == sum(len(more) for more, _ in client.requests) == 48
    assert outputs == run_workflow(Client(tokenizer, 1))


def test_one_engine_and_engines_without_helium_are_asked_as_before(tokenizer):
    for client in (Client(tokenizer, 1), Client(tokenizer, 2, helium=False)):
        run_workflow(client)
        assert all(more == {} for more, _ in client.requests)


def test_a_call_that_an_engine_gives_up_by_itself_is_made_again(tokenizer):
    class Leaving(Client):
        """Gives every other call up, as a rank does that ends because another one has died."""

        async def generate(self, *args, **more):
            async for output in super().generate(*args, **more):
                if len(self.requests) % 2:
                    output.outputs[0].finish_reason = "abort"
                yield output

    options = RuntimeOptions(retries=RetryPolicy(base_delay_s=0.0))
    client = Leaving(tokenizer, 2)
    assert run_workflow(client, options=options) == run_workflow(Client(tokenizer, 1))
    assert len(client.requests) > 48


def ask(client, method, path, **arguments):
    async def main():
        app = FastAPI()
        app.include_router(router)
        app.state.engine_client = client
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://s") as http:
            return await http.request(method, path, **arguments)

    return asyncio.run(main())


def register(client, rank=None):
    headers = {} if rank is None else {"X-data-parallel-rank": rank}
    return ask(client, "POST", "/v1/helium/plans", content=PLAN.to_json(), headers=headers)


def test_a_plan_goes_to_all_ranks_or_to_the_one_that_the_header_names(tokenizer):
    for rank, expected in ((None, [1, 1]), ("0", [1, 0]), ("1", [0, 1])):
        client = Client(tokenizer, 2)
        assert register(client, rank).json()["digest"] == PLAN.digest()
        assert [len(registry) for registry in client.engine_core.registries] == expected
        plans = ask(client, "GET", "/v1/helium/plans").json()["data"]
        assert [plan["digest"] for plan in plans] == [PLAN.digest()]


@pytest.mark.parametrize("rank", ["2", "-1", "x", "", "9" * 5000, "0x0", "1.0", "0" * 9 + "2"])
def test_a_rank_that_is_none_is_refused_by_name(tokenizer, rank):
    client = Client(tokenizer, 2)
    answer = register(client, rank)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "X-data-parallel-rank"
    assert [len(registry) for registry in client.engine_core.registries] == [0, 0]
