"""Errors of our routes, in the shape of the OpenAI API, and what becomes of ours there."""

from __future__ import annotations

import functools
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from helium.errors import ConfigError, HeliumError, PlanError, WorkflowError
from helium.runtime import RunError

logger = logging.getLogger(__name__)

Route = Callable[..., Awaitable[Response]]


class RouteError(HeliumError):
    """Ends a request with a status; ``param`` names the field at fault."""

    def __init__(self, status: HTTPStatus, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param


def error_response(status: HTTPStatus, message: str, param: str | None = None) -> JSONResponse:
    """Builds an error in the OpenAI API's shape."""
    error = {"message": message, "type": status.phrase, "param": param, "code": status.value}
    return JSONResponse({"error": error}, status_code=status.value)


async def read_body(request: Request, limit: int) -> bytes:
    """Reads a body of at most ``limit`` bytes without ever holding more.

    A body that is too long is read on and thrown away, up to eight times the limit, so that a
    client that is still sending gets the answer and not a reset connection.

    Raises:
        RouteError: The body is longer: 413.
    """
    body = bytearray()
    num_bytes = 0
    async for chunk in request.stream():
        num_bytes += len(chunk)
        if num_bytes <= limit:
            body += chunk
        elif num_bytes > 8 * limit:
            break
    if num_bytes > limit:
        raise RouteError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the body is too large; at most {limit} bytes are taken",
        )
    return bytes(body)


def answering(route: Route) -> Route:
    """Turns what a route raises into an answer: 400 for what a client sent, 409, 503."""

    @functools.wraps(route)
    async def answer(*args: Any, **kwargs: Any) -> Response:
        try:
            return await route(*args, **kwargs)
        except RouteError as error:
            return error_response(error.status, str(error), error.param)
        except (WorkflowError, PlanError, ConfigError) as error:
            return error_response(HTTPStatus.BAD_REQUEST, str(error))
        except RunError as error:
            if isinstance(error.__cause__, (OSError, sqlite3.Error)):
                logger.error("%s", error)
                return error_response(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
            return error_response(HTTPStatus.CONFLICT, str(error))

    return answer
