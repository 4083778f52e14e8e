"""Error responses: a status and {"error": {"message": one sentence}}."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from engine.inputs.visible import visible
from tuner.errors import (
    BusyStudyError,
    FullQueueError,
    MissingStudyError,
    StoreError,
    TunerError,
    UsageError,
)
from tuner.service.define import ForbiddenModelError

log = logging.getLogger(__name__)

RETRY_S = 5
# The first matching class decides.
STATUS: tuple[tuple[type[TunerError], int], ...] = (
    (ForbiddenModelError, 403),
    (MissingStudyError, 404),
    (BusyStudyError, 409),
    (FullQueueError, 429),
    (StoreError, 503),
    (UsageError, 422),
    (TunerError, 500),
)


class Problem(BaseModel):
    """An error. message: one sentence with what was given, what is allowed, and what to try."""

    message: str


class ProblemDocument(BaseModel):
    """The document of every error response."""

    error: Problem


def problem(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Builds a response of this status with one sentence."""
    return JSONResponse({"error": {"message": visible(message)}}, status, headers)


def explain_problems(app: FastAPI) -> None:
    """Turns every error of this app into an error document."""
    app.add_exception_handler(RequestValidationError, _explain_request)
    app.add_exception_handler(HTTPException, _explain_status)
    app.add_exception_handler(TunerError, _explain_own)
    app.add_exception_handler(Exception, _explain_unexpected)


def documented(*statuses: int) -> dict[int | str, dict[str, object]]:
    """The entries of these statuses for the OpenAPI document."""
    return {
        status: {"model": ProblemDocument, "description": HTTPStatus(status).phrase}
        for status in statuses
    }


async def _explain_request(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return problem(422, "; ".join(_detail(detail) for detail in error.errors()[:3]))


def _detail(detail: Mapping[str, object]) -> str:
    where = detail.get("loc")
    steps = [str(step) for step in where] if isinstance(where, tuple | list) else []
    place = ".".join(steps[1:]) or "the request"
    given = "" if detail.get("type") == "missing" else f" = {detail.get('input')!r:.80}"
    return f"{place}{given}: {detail.get('msg')} (see /docs)"


async def _explain_status(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = _allowed(request) or headers.get("Allow", "")
    return problem(error.status_code, str(error.detail), headers)


def _allowed(request: Request) -> str:
    """The methods of a path; a route itself knows only its own."""
    template = getattr(request.scope.get("route"), "path", "")
    methods = request.app.openapi()["paths"].get(template, {})
    return ", ".join(sorted(method.upper() for method in methods))


async def _explain_own(_: Request, error: Exception) -> JSONResponse:
    status = next(code for kind, code in STATUS if isinstance(error, kind))
    headers = {"Retry-After": str(RETRY_S)} if status in (429, 503) else None
    return problem(status, str(error), headers)


async def _explain_unexpected(_: Request, error: Exception) -> JSONResponse:
    log.error("unexpected %s", type(error).__name__, exc_info=error)
    return problem(500, "the service failed unexpectedly; its log says where")
