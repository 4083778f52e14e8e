"""Builds the FastAPI application of an open service: routes, errors, middleware."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import Depends, FastAPI

from tuner.service import configs, studies
from tuner.service.access import require_token
from tuner.service.guard import (
    BeforeHttp,
    BodySize,
    Layer,
    LocalHost,
    OwnPages,
    Rate,
    SafeHeaders,
)
from tuner.service.health import health_router, metrics_router
from tuner.service.metrics import Metered
from tuner.service.problems import documented, explain_problems
from tuner.service.rate import RateLimit
from tuner.service.service import Service

DESCRIPTION = """Studies that find the best way to run a Mixture-of-Experts model in a memory
budget, and the configs that they found. Every error is `{"error": {"message": one sentence}}`."""


def build_app(service: Service) -> FastAPI:
    """Builds the application; it closes nothing."""
    settings = service.settings
    app = FastAPI(
        title="expertune",
        version=version("expertune"),
        description=DESCRIPTION,
        redoc_url=None,
        redirect_slashes=False,
        responses=documented(400, 403, 422, 429, 503),
    )
    app.state.service = service
    private = [Depends(require_token)] if settings.needs_token else []
    refusals = documented(401) if settings.needs_token else {}
    app.include_router(health_router)
    for router in (studies.router, configs.router, metrics_router):
        app.include_router(router, dependencies=private, responses=refusals)
    explain_problems(app)
    app.add_middleware(BeforeHttp, layers=_layers(service))
    return app


def _layers(service: Service) -> list[Layer]:
    """The layers before every request, outermost last."""
    settings = service.settings
    limit = RateLimit(settings.requests_per_s, settings.burst)
    own_only: list[Layer] = [] if settings.needs_token else [OwnPages, LocalHost]
    return [
        lambda app: BodySize(app, settings.max_body_bytes),
        *own_only,
        lambda app: Rate(app, limit),
        lambda app: Metered(app, service.metrics),
        SafeHeaders,
    ]
