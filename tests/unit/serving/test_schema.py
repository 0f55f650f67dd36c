"""What the routes answer is what their OpenAPI schema says, whatever they are asked."""

import contextlib
from types import SimpleNamespace

import pytest
import requests
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from helium.protocol import decode_engine_plan
from tests.unit.runtime.engines import Engine
from tests.unit.serving.test_data_parallel import PLAN as ENGINE_PLAN
from tests.unit.serving.test_data_parallel import Core
from tests.unit.serving.test_workflow_routes import PLAN
from tests.unit.serving.thread_server import serve_on_thread
from vllm_helium.serving.routes import router
from vllm_helium.serving.workflow_routes import router as workflow_router

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]

ROUTES = FastAPI()
ROUTES.include_router(router)
ROUTES.include_router(workflow_router)
SCHEMA = schemathesis.openapi.from_dict(ROUTES.openapi())
OPERATIONS = {
    operation.label: operation
    for operation in (found.ok() for found in SCHEMA.get_all_operations())
}


class Engines(Core):
    """The client of two data-parallel engines, of which each keeps its plans."""

    async def _call_utility_async(self, _, method, *arguments, engine):
        plans = self.registries[self.core_engines.index(engine)]
        match method:
            case "register_plan":
                plan = decode_engine_plan(*arguments)
                count = len(plan.operators)
                described = {"digest": plans.register(plan), "object": "helium.plan"}
                return described | {"workflow": plan.workflow, "num_operators": count}
            case "list_plans":
                return plans.describe()
            case "drop_plan":
                return plans.drop(*arguments)
        return {"num_plans": len(plans)}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Yields the address of the routes over an engine that answers at once."""
    ROUTES.state.engine_client = SimpleNamespace(engine_core=Engines(2), errored=False)
    with serve_on_thread(ROUTES, Engine(), tmp_path_factory.mktemp("state")) as url:
        yield url


def known(session, url):
    """Makes a plan, a workflow and a run of it, if they are not there; returns their names."""

    def post(path, **arguments):
        answer = session.post(url + path, **arguments)
        assert answer.status_code == 200, answer.text
        return answer.json()

    plan = post("/v1/helium/plans", data=ENGINE_PLAN.to_json())
    workflow = post("/v1/workflows", json={"plan": PLAN})["id"]
    body = {"inputs": {"topic": ["a", "b"]}, "run": "r", "wait": True}
    run = post(f"/v1/workflows/{workflow}/runs", json=body)
    return {"workflow": workflow, "run": run["id"], "digest": plan["digest"]}


def attack(operation, url, count):
    """Sends requests made from the schema; half of them are about things that are there.

    Returns:
        The statuses that came back.
    """
    statuses = set()

    with contextlib.closing(requests.Session()) as session:
        names = known(session, url)

        @settings(
            max_examples=count,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(), is_known=st.booleans())
        def send(case, is_known):
            if is_known:
                case.path_parameters = {name: names[name] for name in case.path_parameters or {}}
                if isinstance(case.body, dict) and "inputs" in case.body:
                    case.body |= {"inputs": {"topic": ["a", "b"]}}
            answer = case.call_and_validate(base_url=url, session=session, checks=CHECKS)
            statuses.add(answer.status_code)

        send()
    return statuses


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_answer_is_one_that_the_schema_declares(server, name):
    statuses = attack(OPERATIONS[name], server, 16)
    assert name in ("POST /v1/workflows", "POST /v1/helium/plans") or statuses & {200, 202}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_answer_of_many_is_one_that_the_schema_declares(server, name):
    attack(OPERATIONS[name], server, 200)
