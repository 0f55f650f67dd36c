"""``/v1/workflows``: register workflows, run them, follow, cancel and explain their runs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from msgspec import Meta

from helium.errors import WorkflowError
from helium.json_text import decode_json
from helium.optimizer.driver import Switches
from helium.plan.interpret import Value
from helium.plan.logical_plan import LogicalPlan
from helium.runtime import RunError, RunInfo
from helium.runtime.result import CallCounts, RowFailure
from vllm_helium.serving.errors import RouteError, answering, read_body
from vllm_helium.serving.openapi import (
    ERRORS,
    SERVER_SENT_EVENT,
    answering_with,
    body_of,
    list_of,
    object_of,
    parameter,
)
from vllm_helium.serving.workflow_service import ShuttingDown, TooManyRuns, WorkflowService
from vllm_helium.serving.workflow_store import WorkflowInfo

MAX_WORKFLOW_BYTES = 16 << 20
MAX_RUN_BYTES = 64 << 20
KEEP_ALIVE_S = 15.0
"""Pause after which an event stream says that it is still there."""

_FORMATS = {
    "text": PlainTextResponse,
    "dot": PlainTextResponse,
    "json": Response,
    "html": HTMLResponse,
}

_STREAMS = ["events", "tokens"]

_WORKFLOW = object_of("workflow", WorkflowInfo)
_RUN = object_of("workflow.run", RunInfo)
_WHOLE_RUN = object_of(
    "workflow.run",
    RunInfo,
    results=dict[str, list[Value | None]],
    failures=list[RowFailure],
    counts=dict[str, CallCounts],
    usage=CallCounts,
)

router = APIRouter(prefix="/v1/workflows", tags=["workflows"], responses=ERRORS)


class WorkflowBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of ``POST /v1/workflows``; ``plan`` is a ``LogicalPlan`` as JSON."""

    plan: msgspec.Raw
    name: Annotated[str, Meta(min_length=1, max_length=128)] = "workflow"


class RunOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a run is made: optimizer rules, and seconds after which the rest of it fails."""

    rules: Switches = Switches()
    timeout_s: Annotated[float, Meta(gt=0, le=30 * 86_400)] | None = None


class RunBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of ``POST /v1/workflows/{id}/runs``.

    Attributes:
        inputs: Column -> its values, or one string for all rows.
        run: Id; where there is such a run already and it is of the same request, it goes on.
        wait: Whether to answer only when the run is over.
    """

    inputs: dict[str, str | list[str]] = {}
    run: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None
    options: RunOptions = RunOptions()
    wait: bool = False


@router.post(
    "", openapi_extra=body_of(WorkflowBody, plan=LogicalPlan), responses=answering_with(_WORKFLOW)
)
@answering
async def register_workflow(raw: Request) -> Response:
    """Registers a workflow; registering it again changes nothing."""
    body = _decode(await read_body(raw, MAX_WORKFLOW_BYTES), WorkflowBody)
    service = _service(raw)
    plan = await asyncio.to_thread(_plan_of, bytes(body.plan))
    info = await service.register(body.name, plan)
    return JSONResponse(_workflow(info))


@router.get("", responses=answering_with(list_of(_WORKFLOW)))
@answering
async def list_workflows(raw: Request) -> Response:
    """Lists the registered workflows, the oldest first."""
    service = _service(raw)
    infos = await service.disk(service.workflows.list)
    return JSONResponse({"object": "list", "data": [_workflow(info) for info in infos]})


@router.get(
    "/{workflow}", responses=answering_with(object_of("workflow", WorkflowInfo, plan=LogicalPlan))
)
@answering
async def get_workflow(workflow: str, raw: Request) -> Response:
    """Returns a workflow with its plan."""
    service = _service(raw)
    plan = await _known_plan(service, workflow)
    info = await service.disk(service.workflows.info, workflow)
    if info is None:  # deleted in between
        raise _unknown_workflow(workflow)
    return JSONResponse(_workflow(info) | {"plan": msgspec.to_builtins(plan)})


@router.delete("/{workflow}", responses=answering_with(object_of("workflow", id=str, deleted=bool)))
@answering
async def delete_workflow(workflow: str, raw: Request) -> Response:
    """Forgets a workflow; its runs stay."""
    service = _service(raw)
    if not await service.disk(service.workflows.delete, workflow):
        raise _unknown_workflow(workflow)
    return JSONResponse({"id": workflow, "object": "workflow", "deleted": True})


@router.post(
    "/{workflow}/runs",
    openapi_extra=body_of(RunBody),
    responses=answering_with(_WHOLE_RUN)
    | answering_with(_RUN, HTTPStatus.ACCEPTED, "The run is under way."),
)
@answering
async def start_run(workflow: str, raw: Request) -> Response:
    """Starts a run: 202, or 200 with its result where the body says ``wait``."""
    body = await asyncio.to_thread(_decode, await read_body(raw, MAX_RUN_BYTES), RunBody)
    service = _service(raw)
    plan = await _known_plan(service, workflow)
    try:
        run = await service.submit(
            workflow,
            plan,
            body.inputs,
            run=body.run,
            switches=body.options.rules,
            cache_salt=body.cache_salt,
            timeout_s=body.options.timeout_s,
        )
    except TooManyRuns as error:
        raise RouteError(HTTPStatus.TOO_MANY_REQUESTS, str(error)) from None
    except ShuttingDown as error:
        raise RouteError(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from None
    if not body.wait:
        info = await _known_run(service, workflow, run)
        return JSONResponse(_run(info), status_code=HTTPStatus.ACCEPTED)
    await service.wait(run)
    return JSONResponse(await _whole_run(service, workflow, run))


@router.get("/{workflow}/runs", responses=answering_with(list_of(_RUN)))
@answering
async def list_runs(workflow: str, raw: Request) -> Response:
    """Lists the runs of a workflow, the oldest first."""
    service = _service(raw)
    infos = [info for info in await service.disk(service.runs.runs) if info.workflow == workflow]
    if not infos and await service.disk(service.workflows.info, workflow) is None:
        raise _unknown_workflow(workflow)
    return JSONResponse({"object": "list", "data": [_run(info) for info in infos]})


@router.get("/{workflow}/runs/{run}", responses=answering_with(_WHOLE_RUN))
@answering
async def get_run(workflow: str, run: str, raw: Request) -> Response:
    """Returns a run with what is done of it so far."""
    return JSONResponse(await _whole_run(_service(raw), workflow, run))


@router.delete("/{workflow}/runs/{run}", responses=answering_with(_RUN))
@answering
async def cancel_run(workflow: str, run: str, raw: Request) -> Response:
    """Cancels a run; what is done of it stays. One that is over is left as it is."""
    service = _service(raw)
    await _known_run(service, workflow, run)
    await service.cancel(run)
    return JSONResponse(_run(await _known_run(service, workflow, run)))


@router.get(
    "/{workflow}/runs/{run}/events",
    response_class=Response,
    openapi_extra={
        "parameters": [
            parameter("query", "stream", {"enum": _STREAMS}),
            parameter("header", "Last-Event-ID", {"type": "string", "pattern": "^[0-9]{1,15}$"}),
        ]
    },
    responses=answering_with(SERVER_SENT_EVENT, media_types=("text/event-stream",)),
)
@answering
async def watch_run(workflow: str, run: str, raw: Request) -> Response:
    """Streams a run's events (SSE) from its beginning, or after ``Last-Event-ID``.

    With ``?stream=tokens`` also how the outputs of calls under way grow, as ``call_delta``. These
    have no id and are never repeated: who comes back after a break gets the outputs so far at once.
    They are told by the server that works on the run.
    """
    service = _service(raw)
    last = raw.headers.get("last-event-id", "") or "0"
    if not re.fullmatch(r"[0-9]{1,15}", last):
        raise RouteError(
            HTTPStatus.BAD_REQUEST,
            f"Last-Event-ID: expected a number, got {last[:80]!r}",
            "last-event-id",
        )
    wanted = raw.query_params.get("stream", "events")
    if wanted not in _STREAMS:
        raise RouteError(
            HTTPStatus.BAD_REQUEST, f"stream: {wanted[:80]!r} is none of {_STREAMS}", "stream"
        )
    await _known_run(service, workflow, run)
    events = service.events(run, int(last), with_deltas=wanted == "tokens")
    stream = _stream(events)
    return StreamingResponse(stream, media_type="text/event-stream")


@router.get(
    "/{workflow}/runs/{run}/explain",
    response_class=Response,
    openapi_extra={"parameters": [parameter("query", "format", {"enum": list(_FORMATS)})]},
    responses=answering_with({}, media_types=("text/plain", "text/html", "application/json")),
)
@answering
async def explain_run(workflow: str, run: str, raw: Request) -> Response:
    """Explains a run (``?format=text|json|html|dot``), with measured figures once it is over."""
    service = _service(raw)
    format = raw.query_params.get("format", "text")
    if format not in _FORMATS:
        raise RouteError(
            HTTPStatus.BAD_REQUEST, f"format: {format!r} is none of {list(_FORMATS)}", "format"
        )
    await _known_run(service, workflow, run)
    text = await service.explain(run, format)
    if format == "json":
        return Response(text, media_type="application/json")
    return _FORMATS[format](text)


async def _stream(events: AsyncIterator[tuple[int | None, Any]]) -> AsyncIterator[bytes]:
    coming: asyncio.Task[Any] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait([coming], timeout=KEEP_ALIVE_S)
            if not done:
                yield b": still there\n\n"
                continue
            try:
                number, event = coming.result()
            except StopAsyncIteration:
                return
            except RunError as error:  # the run was deleted, or its file is gone
                yield b"event: error\ndata: " + msgspec.json.encode(str(error)) + b"\n\n"
                return
            coming = None
            yield _frame(number, event)
    finally:
        if coming is not None:
            coming.cancel()


def _frame(number: int | None, event: Any) -> bytes:
    kind = type(event).__struct_config__.tag
    head = b"" if number is None else b"id: %d\n" % number
    return head + b"event: %s\ndata: %s\n\n" % (kind.encode(), msgspec.json.encode(event))


def _service(raw: Request) -> WorkflowService:
    service: WorkflowService | None = getattr(raw.app.state, "helium_workflows", None)
    if service is None:
        raise RouteError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "workflows need one place for all API servers; start with --helium-state-dir, or with "
            "--api-server-count 1",
        )
    return service


def _decode(raw: bytes, kind: Any) -> Any:
    try:
        return decode_json(raw, kind)
    except msgspec.ValidationError as error:
        raise RouteError(HTTPStatus.BAD_REQUEST, f"body: {error}", _field(str(error))) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise RouteError(HTTPStatus.BAD_REQUEST, f"body: not valid JSON: {error}") from None


def _field(message: str) -> str | None:
    found = re.search(r"at `\$\.?([^`]*)`", message)
    return (found.group(1) or None) if found else None


_AT_OPERATOR = re.compile(r"operators\[(\d+)\]\.?(.*)")
_OF_OPERATOR = re.compile(r"^operator '([^']*)'")


def _plan_of(raw: bytes) -> LogicalPlan:
    """Decodes a plan; errors name the operator and the field."""
    try:
        return LogicalPlan.from_json(raw)
    except RecursionError:
        raise RouteError(HTTPStatus.BAD_REQUEST, "plan: nested too deeply", "plan") from None
    except WorkflowError as error:
        message = str(error)
        at = _AT_OPERATOR.search(_field(message) or "")
        if at is not None:
            name = _operator_name(raw, int(at.group(1)))
            field = at.group(2) or "operator"
            raise RouteError(
                HTTPStatus.BAD_REQUEST, f"operator {name!r}, field {field!r}: {message}", field
            ) from None
        of = _OF_OPERATOR.match(message)
        param = f"plan.operators.{of.group(1)}" if of else "plan"
        raise RouteError(HTTPStatus.BAD_REQUEST, message, param) from None


def _operator_name(raw: bytes, index: int) -> str:
    try:
        operator = decode_json(raw)["operators"][index]
    except msgspec.DecodeError:  # something else is wrong further on
        return f"number {index}"
    name = operator.get("name") if isinstance(operator, dict) else None
    return name if isinstance(name, str) else f"number {index}"


async def _known_plan(service: WorkflowService, workflow: str) -> LogicalPlan:
    plan: LogicalPlan | None = await service.disk(service.workflows.plan, workflow)
    if plan is None:
        raise _unknown_workflow(workflow)
    return plan


async def _known_run(service: WorkflowService, workflow: str, run: str) -> RunInfo:
    for info in await service.disk(service.runs.find, run):
        if info.workflow == workflow:
            return info
    raise RouteError(
        HTTPStatus.NOT_FOUND,
        f"workflow {workflow!r} has no run {run!r}; GET /v1/workflows/{{id}}/runs lists them",
        "run",
    )


def _unknown_workflow(workflow: str) -> RouteError:
    return RouteError(
        HTTPStatus.NOT_FOUND,
        f"no workflow {workflow!r} is registered; GET /v1/workflows lists them",
        "workflow",
    )


def _workflow(info: Any) -> dict[str, Any]:
    return {"object": "workflow", **msgspec.structs.asdict(info)}


def _run(info: RunInfo) -> dict[str, Any]:
    return {"object": "workflow.run", **msgspec.structs.asdict(info)}


async def _whole_run(service: WorkflowService, workflow: str, run: str) -> dict[str, Any]:
    info = await _known_run(service, workflow, run)
    result = await service.result(run)
    return _run(info) | {
        "results": result.outputs,
        "failures": msgspec.to_builtins(result.failures),
        "counts": msgspec.to_builtins(result.counts),
        "usage": msgspec.to_builtins(result.total),
    }
