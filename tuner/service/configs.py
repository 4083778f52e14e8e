"""The route that deployments poll: the best config that fits, as YAML with an ETag."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header
from starlette.exceptions import HTTPException
from starlette.responses import Response

from engine.types import parse_size_bytes
from tuner.service.best import ConfigRequest
from tuner.service.problems import documented
from tuner.service.requests import Missing, WantedDevice, WantedGoal, WantedModel, WantedVram
from tuner.service.service import Service, current

router = APIRouter(prefix="/v1/configs", tags=["configs"])
MEDIA_TYPE = "text/yaml"


@router.get(
    "/best",
    response_class=Response,
    responses={
        200: {
            "description": "A deployment YAML.",
            "content": {MEDIA_TYPE: {"schema": {"type": "object"}}},
            "headers": {"ETag": {"schema": {"type": "string"}}},
        },
        304: {"description": "It is still the one that If-None-Match names."},
        **documented(404),
    },
)
def best(
    model: WantedModel,
    service: Annotated[Service, Depends(current)],
    device: WantedDevice = None,
    vram: WantedVram = None,
    goal: WantedGoal = "knee",
    if_none_match: Annotated[str | Missing, Header(description="An ETag got before.")] = None,
) -> Response:
    """The config to run: the best for `goal` among all studies of this model that fit."""
    vram_bytes = None if vram is None else parse_size_bytes(vram)
    answer = service.best.find(ConfigRequest(model, device, vram_bytes, goal))
    if answer is None:
        raise HTTPException(
            404,
            f"no study holds a config of '{model}' for device {device or 'any'} within "
            f"{vram or 'any'} of vram that was measured for {goal}: start one with POST "
            "/v1/studies, or ask for less",
        )
    headers = {"ETag": answer.etag, "Cache-Control": "no-cache"}
    if if_none_match is not None and _matches(if_none_match, answer.etag):
        return Response(status_code=304, headers=headers)
    return Response(answer.text, media_type=MEDIA_TYPE, headers=headers)


def _matches(given: str, etag: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in given.split(",")]
    return "*" in tags or etag in tags
