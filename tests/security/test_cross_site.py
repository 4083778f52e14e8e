"""What a page of another site can make a browser send: it starts nothing and reads nothing."""

from __future__ import annotations

import gzip
import json
from typing import Any

import httpx
import pytest

from engine.inputs.origin import is_foreign
from tests.engine.serve.made import MODEL
from tests.security.conftest import Listening
from tests.tuner.service.made import REQUEST

BODIES = {
    "deploy": ("/v1/completions", {"model": MODEL, "prompt": "a", "max_tokens": 2}),
    "service": ("/v1/studies", REQUEST),
}
TYPES = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "",
         "application/json")  # fmt: skip
FROM_ELSEWHERE: tuple[dict[str, str], ...] = (
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://localhost"},
    {"Origin": "file://"},
    {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
)


def post(server: Listening, headers: dict[str, str], kind: str) -> httpx.Response:
    path, body = BODIES[server.name]
    content = json.dumps(body).encode()
    typed = {"Content-Type": kind} if kind else {}
    return httpx.post(f"{server.url}{path}", content=content, headers={**typed, **headers})


@pytest.mark.parametrize("headers", FROM_ELSEWHERE, ids=str)
def test_a_page_of_another_site_starts_nothing(server: Listening, headers: dict[str, str]) -> None:
    before = server.done()
    for kind in TYPES:
        answer = post(server, headers, kind)
        assert answer.status_code == 403, kind
        assert "another origin" in answer.json()["error"]["message"]
    assert server.done() == before


@pytest.mark.parametrize("headers", FROM_ELSEWHERE, ids=str)
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/metrics"), ("GET", "/v1/studies/first/events"), ("GET", "/v1/models"),
     ("DELETE", "/v1/studies/first"), ("HEAD", "/healthz")],
)  # fmt: skip
def test_nor_takes_a_stream_nor_stops_a_study(
    server: Listening, headers: dict[str, str], method: str, path: str
) -> None:
    answer = httpx.request(method, f"{server.url}{path}", headers=headers)
    assert answer.status_code == 403


def test_without_a_preflight_the_service_takes_no_request(rest: Listening) -> None:
    """Even where a browser sends neither Origin nor Sec-Fetch-Site, which old ones may not."""
    before = rest.done()
    for kind in TYPES[:-1]:
        assert post(rest, {}, kind).status_code == 422
    assert rest.done() == before


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://page.example"])
def test_no_answer_may_be_read_by_pages_that_are_not_named(server: Listening, origin: str) -> None:
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    named = server.name == "deploy" and origin == "http://page.example"
    for method in ("OPTIONS", "GET"):
        answer = httpx.request(method, f"{server.url}/healthz", headers=asked)
        shared = [name for name in answer.headers if name.startswith("access-control-allow-origin")]
        assert bool(shared) == named
        assert (answer.status_code == 200) == named


def test_own_pages_programs_and_followed_links_are_answered(server: Listening) -> None:
    own = {"Origin": server.url, "Sec-Fetch-Site": "same-origin"}
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    typed = {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    for headers in (own, link, typed, {}):
        answer = httpx.get(f"{server.url}/openapi.json", headers=headers)
        assert answer.status_code == 200, headers


def test_a_packed_body_is_not_unpacked(server: Listening) -> None:
    path, _ = BODIES[server.name]
    packed = gzip.compress(b" " * (10 << 20))
    for encoding in ("gzip", "deflate", "br", "identity, gzip"):
        headers = {"Content-Encoding": encoding, "Content-Type": "application/json"}
        before = server.done()
        answer = httpx.post(f"{server.url}{path}", content=packed, headers=headers)
        assert answer.status_code in (400, 415, 422)
        assert server.done() == before


@pytest.mark.parametrize(
    ("headers", "allowed", "foreign"),
    [
        ({}, (), False),
        ({"origin": "http://a:1", "host": "a:1"}, (), False),
        ({"origin": "https://A:1", "host": "a:1"}, (), False),
        ({"origin": "http://a:1", "host": "a:2"}, (), True),
        ({"origin": "http://a:1", "host": "a:2"}, ("http://a:1",), False),
        ({"origin": "http://a:1", "host": "a:2"}, ("*",), False),
        ({"origin": "a:1", "host": "a:1"}, (), True),
        ({"origin": "", "host": ""}, (), True),
        ({"origin": "null", "host": "null"}, (), True),
        ({"sec-fetch-site": "same-site"}, (), False),
        ({"sec-fetch-site": "cross-site"}, (), True),
    ],
)
def test_an_origin_is_the_servers_own_or_named(
    headers: dict[str, str], allowed: Any, foreign: bool
) -> None:
    assert is_foreign(headers, allowed) is foreign
