"""Generated requests against the OpenAPI document: every answer is one that it announces."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from tests.tuner.service.made import ADDRESS, MadeChild
from tuner.service.app import build_app
from tuner.service.service import Service, open_service
from tuner.service.settings import ServiceSettings
from tuner.service.tokens import make_token
from tuner.store.service import Tokens

EXAMPLES = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


WITHOUT_INPUT = {"GET /healthz", "GET /metrics", "GET /v1/studies"}
WITH_INPUT = {
    "POST /v1/studies",
    "GET /v1/studies/{name}",
    "DELETE /v1/studies/{name}",
    "GET /v1/studies/{name}/trials",
    "GET /v1/studies/{name}/front",
    "GET /v1/studies/{name}/events",
    "GET /v1/configs/best",
}


def ended(*_: object) -> MadeChild:
    child = MadeChild()
    child.end(0)
    return child


@pytest.fixture(params=["open", "token"])
def service(request, study, settings: ServiceSettings) -> Iterator[Service]:
    """A service over a finished study, whose own studies end at once; once with tokens."""
    with open_service(replace(settings, require_token=request.param == "token"), ended) as opened:
        yield opened


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_as_announced(service: Service, mode: GenerationMode):
    app = build_app(service)
    document = schemathesis.openapi.from_dict(app.openapi())
    document.app = app
    headers = {}
    if service.settings.needs_token:
        headers["Authorization"] = f"Bearer {make_token(Tokens(service.jobs.database), 'schema')}"
    operations = {found.ok().label: found.ok() for found in document.get_all_operations()}
    assert operations.keys() == WITH_INPUT | WITHOUT_INPUT
    wrong = mode is GenerationMode.NEGATIVE
    for label in WITH_INPUT if wrong else WITH_INPUT | WITHOUT_INPUT:

        @EXAMPLES
        @given(case=operations[label].as_strategy(generation_mode=mode))
        def hold(case: schemathesis.Case) -> None:
            case.call_and_validate(base_url=ADDRESS, headers=headers)

        hold()
