"""Routes for monitoring the service: health and metrics."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import Response

from tuner.service.documents import HealthDocument
from tuner.service.service import Service, current

health_router = APIRouter(tags=["service"])
metrics_router = APIRouter(tags=["service"])
Current = Annotated[Service, Depends(current)]


@health_router.get("/healthz")
def healthz(service: Current) -> HealthDocument:
    """200 while the store answers and jobs are run, else 503; needs no token."""
    jobs = service.seen_jobs.count_by_state()
    if not service.runner.alive:
        raise HTTPException(503, "no jobs are taken: restart the service")
    return HealthDocument(status="ok", jobs=jobs)


@metrics_router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(service: Current) -> Response:
    """Requests, jobs and trials in Prometheus' text format."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)
