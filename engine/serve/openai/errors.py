"""Errors of the HTTP API, all in OpenAI's shape: {"error": {message, type, param, code}}.

A message never repeats what the client sent except the name of a field: prompts and keys must not
appear in answers and logs.
"""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from engine.inputs.visible import visible
from engine.serve.openai.requests import SEVERAL
from engine.serve.openai.responses import ErrorAnswer, Problem

log = logging.getLogger(__name__)
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}

_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}
_LONGEST_NAME = 200  # of a field or a route in a message


class ApiError(Exception):
    """A request that cannot be answered. status: HTTP status; param: the field; code: for
    programs."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.problem = problem(status, message, param=param, code=code)


def problem(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> Problem:
    """The inner part of an error body; its type follows from the status."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return Problem(
        message=visible(message), type=kind, param=visible(param) if param else None, code=code
    )


def add_handlers(app: FastAPI) -> None:
    """Register handlers that answer every error in OpenAI's shape."""

    async def on_api_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error_response(error)

    async def on_invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return _answer(400, _first_problem(error))

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        found = problem(error.status_code, _of_route(request, error, headers.get("Allow")))
        return _answer(error.status_code, found, headers)

    async def on_gone(request: Request, error: Exception) -> JSONResponse:
        return _answer(499, problem(499, "the client hung up"))

    async def on_unexpected(request: Request, error: Exception) -> JSONResponse:
        path = visible(_short(request.url.path)).replace("\n", "\\n")
        log.error("%s %s failed: %s", request.method, path, type(error).__name__)
        return _answer(500, problem(500, "the server failed; its log says where"))

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(ClientDisconnect, on_gone)
    app.add_exception_handler(Exception, on_unexpected)


def error_response(error: ApiError) -> JSONResponse:
    """The answer to a request that cannot be answered."""
    return _answer(error.status, error.problem, _HEADERS.get(error.status))


def _answer(status: int, found: Problem, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(ErrorAnswer(error=found).model_dump(), status, headers)


def _of_route(request: Request, error: HTTPException, allowed: str | None) -> str:
    """What is wrong with the route, method or size of a request, in a sentence."""
    path = _short(request.url.path)
    if error.status_code == 404:
        return f"{request.method} {path} is no route here; GET /openapi.json lists them"
    if error.status_code == 405:
        return f"{path} takes {allowed}, not {request.method}"
    return f"{request.method} {path}: {error.detail}"


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."


def _first_problem(error: RequestValidationError) -> Problem:
    """The first validation error, without the value that was sent."""
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"] if part != "body"]
    place = _short(".".join(part for part in parts if not part.startswith("<")))  # of unions
    if len(parts) > 1 and parts[0] in SEVERAL:
        place, message = parts[0], f"{parts[0]} must be {SEVERAL[parts[0]]}"
    elif first["type"] == "extra_forbidden":
        message = f"this server does not know the parameter '{place}'"
    else:
        message = f"{place or 'the body'}: {first['msg'].removeprefix('Value error, ')}"
    return problem(400, message, param=place or None)
