"""Random requests never end in an undeclared error, and the server still works afterwards."""

import asyncio
import os

import pytest

from tests.unit.runtime.engines import Engine
from tests.unit.serving.app import serving
from tests.unit.serving.fuzz import fuzz
from tests.unit.serving.test_workflow_routes import graph, register

LONG = int(os.environ.get("HELIUM_FUZZ_COUNT", "10000"))


def attack(folder, count, seed):
    async def main():
        async with serving(folder, Engine()) as client:
            statuses = await fuzz(client, count, seed)
            path = await register(client, graph())
            body = {"inputs": {"topic": ["a"]}, "wait": True}
            done = await client.post(path + "/runs", json=body)
            assert done.json()["status"] == "done"
            assert client.engine.num_open == 0 and len(client.engine.requests) > count / 100
        return statuses

    statuses = asyncio.run(main())
    assert statuses[503] == 0 and statuses[200] > count / 10 and statuses[400] > count / 10
    return statuses


def test_a_few_hundred_random_requests_are_all_answered_as_declared(tmp_path):
    attack(tmp_path, 400, seed=1)


@pytest.mark.slow
def test_many_random_requests_are_all_answered_as_declared(tmp_path):
    print(attack(tmp_path, LONG, seed=2))
