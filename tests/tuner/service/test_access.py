"""Bearer tokens: made once, hashed at rest, needed everywhere but on loopback."""

import hashlib
import hmac
import logging
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient

from engine.inputs.host_name import is_loopback
from tests.tuner.conftest import Tune
from tests.tuner.service.made import REQUEST, MadeChild
from tuner.service import tokens
from tuner.service.service import Service, open_service
from tuner.service.settings import ServiceSettings

PRIVATE = ["/v1/studies", "/v1/studies/a", "/v1/studies/a/events", "/metrics"]
PRIVATE += ["/v1/configs/best?model=demo"]


@pytest.fixture
def service(settings: ServiceSettings) -> Iterator[Service]:
    """As on an address that others reach."""
    with open_service(replace(settings, host="0.0.0.0"), lambda *_: MadeChild()) as opened:
        yield opened


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def token(service: Service, tune: Tune) -> str:
    return str(tune("service", "token", "add", "ci", "--json").document["token"])


@pytest.mark.parametrize("path", PRIVATE)
def test_a_request_without_a_token_is_refused(client: TestClient, path: str):
    answer = client.get(path)
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert "tune service token add" in answer.json()["error"]["message"]


def test_starting_and_stopping_need_a_token(client: TestClient, service: Service):
    assert client.post("/v1/studies", json=REQUEST).status_code == 401
    assert client.delete("/v1/studies/first").status_code == 401
    assert service.jobs.latest() == {}


def test_health_needs_none(client: TestClient):
    assert client.get("/healthz").json() == {"status": "ok", "jobs": {}}


def test_a_token_opens_every_route(client: TestClient, token: str):
    client.headers.update(bearer(token))
    assert client.post("/v1/studies", json=REQUEST).status_code == 202
    assert client.get("/v1/studies").status_code == 200
    assert client.get("/metrics").status_code == 200


def test_a_wrong_secret_a_wrong_id_and_no_token_at_all_are_refused(client: TestClient, token: str):
    prefix, number, secret = token.split("_", 2)
    wrong = secret[:-1] + ("A" if secret[-1] != "A" else "B")
    for text in (f"{prefix}_{number}_{wrong}", f"{prefix}_999_{secret}", secret, "", f"{token}x"):
        assert client.get("/v1/studies", headers=bearer(text)).status_code == 401
    assert client.get("/v1/studies", headers={"Authorization": f"Basic {token}"}).status_code == 401


def test_a_secret_is_compared_in_constant_time_known_id_or_not(
    client: TestClient, token: str, monkeypatch: pytest.MonkeyPatch
):
    compared: list[tuple[str, str]] = []

    def compare(given: str, kept: str) -> bool:
        compared.append((given, kept))
        return hmac.compare_digest(given, kept)

    monkeypatch.setattr(tokens, "hmac", SimpleNamespace(compare_digest=compare))
    prefix, number, secret = token.split("_", 2)
    for text in (token, f"{prefix}_{number}_{'A' * len(secret)}", f"{prefix}_999_{secret}"):
        client.get("/v1/studies", headers=bearer(text))
    assert len(compared) == 3
    assert {len(text) for pair in compared for text in pair} == {64}


def test_a_revoked_token_is_refused_at_once(client: TestClient, token: str, tune: Tune):
    assert client.get("/v1/studies", headers=bearer(token)).status_code == 200
    assert tune("service", "token", "revoke", "ci").code == 0
    assert client.get("/v1/studies", headers=bearer(token)).status_code == 401


def test_only_the_hash_of_a_secret_is_kept(token: str, folder: Path):
    secret = token.split("_", 2)[2]
    with sqlite3.connect(folder / "data" / "expertune" / "expertune.db") as connection:
        rows = connection.execute("SELECT name, hash FROM token").fetchall()
    connection.close()
    assert rows == [("ci", hashlib.sha256(secret.encode()).hexdigest())]
    written = b"".join(p.read_bytes() for p in (folder / "data").rglob("*") if p.is_file())
    assert secret.encode() not in written


def test_a_list_shows_names_and_no_secrets(tune: Tune, token: str):
    tune("service", "token", "add", "other")
    tune("service", "token", "revoke", "other")
    listed = tune("service", "token", "list", "--json")
    assert [t["name"] for t in listed.document["tokens"]] == ["ci", "other"]
    assert [t["revoked"] is None for t in listed.document["tokens"]] == [True, False]
    shown = tune("service", "token", "list").out
    assert "ci" in shown
    assert token.split("_", 2)[2] not in shown + listed.out


def test_a_name_is_given_once_and_must_be_plain(tune: Tune, token: str):
    assert "there is, or was, a token 'ci'" in tune("service", "token", "add", "ci").err
    assert "no name of a token" in tune("service", "token", "add", "a b").err
    missing = tune("service", "token", "revoke", "absent")
    assert (missing.code, "there is no token 'absent'" in missing.err) == (2, True)


def test_no_log_holds_a_token(client: TestClient, token: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    secret = token.split("_", 2)[2]
    client.get("/v1/studies", headers=bearer(token))
    client.get("/v1/studies", headers=bearer(token + "x"))
    client.get("/v1/studies/..", headers=bearer(token))
    client.post("/v1/studies", json={"model": 1}, headers=bearer(token))
    assert secret not in caplog.text


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True),
        ("0.0.0.0", False), ("::", False), ("192.168.0.7", False), ("localhost.example", False),
    ],
)  # fmt: skip
def test_only_loopback_needs_no_token(settings: ServiceSettings, host: str, expected: bool):
    assert is_loopback(host) is expected
    assert replace(settings, host=host).needs_token is not expected
    assert replace(settings, host=host, require_token=True).needs_token
