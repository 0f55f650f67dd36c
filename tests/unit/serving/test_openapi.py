"""The routes' schema says what they take and what they answer."""

import pytest
from fastapi import FastAPI

from tests.unit.serving.fuzz import DECLARED
from vllm_helium.serving.routes import router
from vllm_helium.serving.workflow_routes import router as workflow_router


@pytest.fixture(scope="module")
def schema():
    app = FastAPI()
    app.include_router(router)
    app.include_router(workflow_router)
    return app.openapi()


def bodies(schema):
    return {
        (path, method): route["requestBody"]["content"]["application/json"]["schema"]
        for path, methods in schema["paths"].items()
        for method, route in methods.items()
        if "requestBody" in route
    }


def test_every_route_declares_its_errors(schema):
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            errors = {int(status) for status in route["responses"] if int(status) >= 400}
            assert {400, 404, 409, 413, 429, 503} <= errors, (method, path)
            assert errors <= DECLARED


def test_every_body_is_described_without_references(schema):
    described = bodies(schema)
    assert sorted(described) == [
        ("/v1/helium/plans", "post"),
        ("/v1/workflows", "post"),
        ("/v1/workflows/{workflow}/runs", "post"),
    ]
    assert "$ref" not in str(described)
    plan = described["/v1/workflows", "post"]["properties"]["plan"]
    kinds = plan["properties"]["operators"]["items"]["anyOf"]
    assert {"llm", "input", "output"} <= {kind["properties"]["type"]["enum"][0] for kind in kinds}
    run = described["/v1/workflows/{workflow}/runs", "post"]
    assert run["properties"]["run"]["anyOf"] and run["additionalProperties"] is False
