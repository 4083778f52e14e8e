"""A service in this process over a store in a temporary folder; its jobs are made up or real."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.tuner.service.made import MadeChild, client_of
from tuner.service.service import Service, open_service
from tuner.service.settings import ServiceSettings


@pytest.fixture
def settings(folder: Path) -> ServiceSettings:
    """Loopback, quick to notice what happens."""
    return ServiceSettings(
        storage=f"sqlite:///{folder / 'data' / 'expertune' / 'expertune.db'}",
        folder=folder / "data" / "expertune" / "service",
        requests_per_s=10_000.0,
        poll_s=0.02,
        grace_s=5.0,
    )


@pytest.fixture
def children() -> list[MadeChild]:
    """The made-up processes that `service` started, the newest last."""
    return []


@pytest.fixture
def service(settings: ServiceSettings, children: list[MadeChild]) -> Iterator[Service]:
    """A service whose studies are made up: they run until they are told how to end."""

    def start(*_: object) -> MadeChild:
        children.append(MadeChild())
        return children[-1]

    with open_service(settings, start) as opened:
        yield opened


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    """Speaks to `service`."""
    with client_of(service) as found:
        yield found


@pytest.fixture
def served(study: Path, settings: ServiceSettings) -> Iterator[Service]:
    """A service over a store with a finished study, `small` of the model `some-moe`."""
    with open_service(replace(settings)) as opened:
        yield opened
