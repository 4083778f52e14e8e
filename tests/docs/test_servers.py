"""docs/deploy.md and docs/service.md: their routes, metrics, options and numbers are the code's."""

import re
from pathlib import Path

import pytest

from engine.serve.batching.exposition import Gauges
from engine.serve.batching.metrics import Meters
from tests.docs.test_commands import parse
from tuner.deployment import canary, drift
from tuner.folders import SOURCE
from tuner.service.settings import ServiceSettings

DOCS = SOURCE / "docs"
DEPLOY = (DOCS / "deploy.md").read_text(encoding="utf-8")
SERVICE = (DOCS / "service.md").read_text(encoding="utf-8")
SETTINGS = ServiceSettings(storage="", folder=Path())


def source(*folders: str) -> str:
    """All Python of these folders as one text."""
    files = (file for folder in folders for file in sorted((SOURCE / folder).rglob("*.py")))
    return "".join(file.read_text(encoding="utf-8") for file in files)


@pytest.mark.parametrize(("page", "folder"), [(DEPLOY, "engine/serve"), (SERVICE, "tuner/service")])
def test_every_route_on_a_page_is_served(page: str, folder: str):
    served = source(folder) + "/docs /openapi.json"  # fastapi's own
    routes = set(re.findall(r"`(?:[A-Z]+ )?(/[a-z0-9/.]+)", page))
    assert routes
    for part in {part for route in routes for part in route.split("/") if part}:
        assert re.search(rf"/{re.escape(part)}\b", served), part


def test_every_metric_is_one_of_the_servers_and_the_other_way_round():
    meters = Meters(1, 1)
    meters.watch(Gauges(lambda: 0, lambda: 0))
    text = meters.exposition().decode()
    names = re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE)
    known = {name for name in names if not name.endswith("_created")}
    assert set(re.findall(r"`((?:expertune_|vllm:)[a-z0-9_]+)`", DEPLOY)) == known


def test_defaults_of_a_deployment_are_the_commands():
    values = parse(("deploy", "file.yaml"))
    assert f"`--queue` sequences may wait ({values['queue']})" in DEPLOY
    assert f"at most `--drain` ({values['drain']} s)" in DEPLOY
    assert f"Every `--telemetry` ({values['telemetry']} s)" in DEPLOY


def test_limits_of_drift_and_canary_are_the_codes():
    assert f"above\n{drift.ROUTING_LIMIT} or {drift.HIT_RATE_LIMIT:.2f}" in DEPLOY
    assert f"fewer than {drift.LEAST_TOKENS} tokens" in DEPLOY
    assert f"A canary of at most {canary.LIMIT_S:.0f} s" in DEPLOY


def test_limits_of_the_service_are_its_settings():
    assert f"up to {SETTINGS.max_waiting} wait" in SERVICE
    assert f"At most {SETTINGS.max_streams} streams" in SERVICE
    assert f"each {SETTINGS.heartbeat_s:.0f} s" in SERVICE
    assert f"`--rate` requests a second ({SETTINGS.requests_per_s:.0f}" in SERVICE
    assert f"a body of {SETTINGS.max_body_bytes >> 20} MiB" in SERVICE
