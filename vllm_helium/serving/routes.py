"""``/v1/helium``: register, list and drop plans; status of the engines.

Errors have the shape of the OpenAI API: ``{"error": {"message", "type", "param", "code"}}``.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from helium.errors import PlanError
from helium.protocol import MAX_PLAN_BYTES, EnginePlan, decode_engine_plan
from vllm_helium.integration.engine_rpc import call_engines_async
from vllm_helium.serving.errors import answering, error_response, read_body
from vllm_helium.serving.openapi import ERRORS, body_of

router = APIRouter(prefix="/v1/helium", tags=["helium"], responses=ERRORS)


@router.post("/plans", openapi_extra=body_of(EnginePlan))
@answering
async def register_plan(raw: Request) -> JSONResponse:
    """Registers an ``EnginePlan`` with every engine; registering it again changes nothing."""
    try:
        plan = decode_engine_plan(await read_body(raw, MAX_PLAN_BYTES))
    except PlanError as error:
        return error_response(HTTPStatus.BAD_REQUEST, str(error), "plan")
    client = raw.app.state.engine_client
    answers = await call_engines_async(client, "register_plan", plan.to_json())
    return JSONResponse(answers[0])


@router.get("/plans")
async def list_plans(raw: Request) -> JSONResponse:
    """Lists the registered plans, most recently used last."""
    answers = await call_engines_async(raw.app.state.engine_client, "list_plans")
    return JSONResponse({"object": "list", "data": answers[0]})


@router.delete("/plans/{digest}")
async def drop_plan(digest: str, raw: Request) -> JSONResponse:
    """Drops a plan; requests that name it afterwards run as ordinary traffic."""
    answers = await call_engines_async(raw.app.state.engine_client, "drop_plan", digest)
    if not any(answers):
        return error_response(
            HTTPStatus.NOT_FOUND,
            f"no plan {digest!r} is registered; GET /v1/helium/plans lists them",
        )
    return JSONResponse({"digest": digest, "object": "helium.plan", "deleted": True})


@router.get("/status")
async def status(raw: Request) -> JSONResponse:
    """Reports configuration, plans and queue of each engine."""
    answers: list[Any] = await call_engines_async(raw.app.state.engine_client, "status")
    return JSONResponse({"object": "helium.status", "engines": answers})
