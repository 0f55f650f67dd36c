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
from vllm_helium.integration.engine_rpc import (
    call_engine_async,
    call_engines_async,
    num_engines,
)
from vllm_helium.serving.errors import answering, error_response, read_body
from vllm_helium.serving.openapi import (
    ERRORS,
    answering_with,
    body_of,
    list_of,
    object_of,
    parameter,
)

_PLAN = {"digest": str, "workflow": str, "num_operators": int}

router = APIRouter(prefix="/v1/helium", tags=["helium"], responses=ERRORS)

RANK_HEADER = "X-data-parallel-rank"


@router.post(
    "/plans",
    openapi_extra=body_of(EnginePlan)
    | {"parameters": [parameter("header", RANK_HEADER, {"type": "integer", "minimum": 0})]},
    responses=answering_with(object_of("helium.plan", **_PLAN)),
)
@answering
async def register_plan(raw: Request) -> JSONResponse:
    """Registers an ``EnginePlan``; registering it again changes nothing.

    Every engine gets it, or the one alone whose rank the header ``X-data-parallel-rank`` names, as
    upstream's routes do it for requests.
    """
    try:
        plan = decode_engine_plan(await read_body(raw, MAX_PLAN_BYTES))
    except PlanError as error:
        return error_response(HTTPStatus.BAD_REQUEST, str(error), "plan")
    client = raw.app.state.engine_client
    rank = raw.headers.get(RANK_HEADER)
    if rank is None:
        return JSONResponse((await call_engines_async(client, "register_plan", plan.to_json()))[0])
    count = num_engines(client)
    if not (rank.isascii() and rank.isdecimal() and len(rank) < 10 and int(rank) < count):
        return error_response(
            HTTPStatus.BAD_REQUEST,
            f"{RANK_HEADER} is {rank[:20]!r}; expected a number below {count}",
            RANK_HEADER,
        )
    return JSONResponse(await call_engine_async(client, int(rank), "register_plan", plan.to_json()))


@router.get(
    "/plans",
    responses=answering_with(list_of(object_of("helium.plan", **_PLAN, num_bytes=int))),
)
async def list_plans(raw: Request) -> JSONResponse:
    """Lists the plans that any engine has, most recently used last."""
    answers = await call_engines_async(raw.app.state.engine_client, "list_plans")
    plans = {plan["digest"]: plan for engine in answers for plan in engine}
    return JSONResponse({"object": "list", "data": list(plans.values())})


@router.delete(
    "/plans/{digest}",
    responses=answering_with(object_of("helium.plan", digest=str, deleted=bool)),
)
async def drop_plan(digest: str, raw: Request) -> JSONResponse:
    """Drops a plan; requests that name it afterwards run as ordinary traffic."""
    answers = await call_engines_async(raw.app.state.engine_client, "drop_plan", digest)
    if not any(answers):
        return error_response(
            HTTPStatus.NOT_FOUND,
            f"no plan {digest!r} is registered; GET /v1/helium/plans lists them",
        )
    return JSONResponse({"digest": digest, "object": "helium.plan", "deleted": True})


@router.get(
    "/status", responses=answering_with(object_of("helium.status", engines=list[dict[str, Any]]))
)
async def status(raw: Request) -> JSONResponse:
    """Reports configuration, plans and queue of each engine."""
    answers: list[Any] = await call_engines_async(raw.app.state.engine_client, "status")
    return JSONResponse({"object": "helium.status", "engines": answers})
