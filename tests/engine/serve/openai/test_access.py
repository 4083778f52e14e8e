"""Who may use a server: its own machine's names, and the API key."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient

from engine.files import short_digest
from engine.serve.openai import access
from engine.serve.openai.access import KEY_DIGITS
from engine.serve.openai.middleware import let_browsers_in
from engine.serve.openai.routes import Serving, create_app
from engine.serve.openai.tokenization import PromptReader, ServedModel
from tests.engine.serve.made import MODEL, ROOM, Running

KEY = "a-key-of-this-test"
Web = Callable[..., TestClient]


@pytest.fixture
def web(server: Running) -> Web:
    def make(local_only: bool = True, key: str = "") -> TestClient:
        served = ServedModel(MODEL, ROOM, 300, 1)
        digest = short_digest(key, KEY_DIGITS) if key else ""
        app = create_app(
            Serving(
                served,
                PromptReader(served, None),
                server.loop,
                server.meters,
                local_only=local_only,
                key_digest=digest,
                origins=["http://page.example"],
            )
        )
        return TestClient(let_browsers_in(app, ["http://page.example"]))

    return make


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/metrics", "/openapi.json"])
def test_a_name_that_a_page_let_mean_this_machine_is_refused(web: Web, path: str) -> None:
    own = web()
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert own.get(path, headers={"Host": host}).status_code == 200
    refused = own.get(path, headers={"Host": "page.example:8000"})
    assert refused.status_code == 400
    assert "answers to localhost, 127.0.0.1 and [::1] only" in refused.json()["error"]["message"]
    assert web(local_only=False).get(path, headers={"Host": "page.example"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer "}, {"Authorization": f"Bearer {KEY}x"},
     {"Authorization": f"Bearer {KEY[:-1]}"}, {"Authorization": KEY},
     {"Authorization": f"Basic {KEY}"}, {"Authorization": "Bearer \xe9"}],
)  # fmt: skip
def test_without_the_key_nothing_but_health_is_answered(
    web: Web, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    own = web(key=KEY)
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    for path in ("/v1/models", "/metrics", "/openapi.json", "/version", "/nowhere"):
        refused = own.get(path, headers=encoded)
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"] == "Bearer"
        assert refused.json()["error"]["code"] == "invalid_api_key"
    assert own.get("/health", headers=encoded).status_code == 200
    assert KEY not in caplog.text


def test_a_key_is_compared_in_constant_time(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was sent, digests of one length are compared, whole."""
    compared: list[tuple[str, str]] = []

    def compare(given: str, kept: str) -> bool:
        compared.append((given, kept))
        return hmac.compare_digest(given, kept)

    monkeypatch.setattr(access, "hmac", SimpleNamespace(compare_digest=compare))
    own = web(key=KEY)
    for sent in ("", "x", KEY[:-1], f"{KEY}x", KEY, "k" * 5000):
        own.get("/v1/models", headers={"Authorization": f"Bearer {sent}"})
    assert len(compared) == 6
    assert {len(text) for pair in compared for text in pair} == {KEY_DIGITS}


def test_with_the_key_any_host_name_is_answered(web: Web) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Host": "example.org"}
    assert web(key=KEY).get("/v1/models", headers=headers).status_code == 200


def test_a_page_may_ask_first_without_the_key(web: Web) -> None:
    asked = {
        "Origin": "http://page.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    assert web(key=KEY).options("/v1/completions", headers=asked).status_code == 200
