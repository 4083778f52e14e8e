"""What stands before requests: rate, size, host name, headers; and what errors look like."""

import logging
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from tests.tuner.service.made import REQUEST, MadeChild, client_of
from tuner.errors import StoreError
from tuner.service.rate import RateLimit
from tuner.service.rate import client_of as client_of_address
from tuner.service.service import Service, open_service
from tuner.service.settings import ServiceSettings


@pytest.fixture
def service(settings: ServiceSettings) -> Iterator[Service]:
    small = replace(settings, max_body_bytes=1000)
    with open_service(small, lambda *_: MadeChild()) as opened:
        yield opened


def test_a_large_body_is_refused_announced_or_not(client: TestClient, service: Service):
    def chunks() -> Iterator[bytes]:
        yield b'{"model": "demo", "vram": "60MB", "prompts": ["'
        for _ in range(50):
            yield b"x" * 100
        yield b'"]}'

    json_type = {"Content-Type": "application/json"}
    announced = client.post("/v1/studies", content=b" " * 1001, headers=json_type)
    streamed = client.post("/v1/studies", content=chunks(), headers=json_type)
    for answer in (announced, streamed):
        assert answer.status_code == 413
        assert "larger than 1000 bytes" in answer.json()["error"]["message"]
    assert client.post("/v1/studies", json=REQUEST).status_code == 202


def test_a_client_that_asks_too_often_waits(settings: ServiceSettings):
    slow = replace(settings, requests_per_s=1.0)
    with open_service(slow, lambda *_: MadeChild()) as service, client_of(service) as client:
        answers = [client.get("/healthz") for _ in range(4)]
    assert [a.status_code for a in answers[:2]] == [200, 200]
    assert answers[3].status_code == 429
    assert answers[3].headers["Retry-After"] == "1"
    assert "requests a second" in answers[3].json()["error"]["message"]


def test_a_bucket_fills_with_time():
    now_s = [0.0]
    limit = RateLimit(2.0, 2.0, clock=lambda: now_s[0])
    assert [limit.wait_s("a") for _ in range(3)] == [0.0, 0.0, 0.5]
    assert limit.wait_s("b") == 0.0
    now_s[0] = 0.5
    assert [limit.wait_s("a") for _ in range(2)] == [0.0, 0.5]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.0, 3.0)), max_size=60))
def test_no_client_ever_gets_more_than_its_rate(requests: list[tuple[str, float]]):
    now_s = 0.0
    limit = RateLimit(2.0, 3.0, clock=lambda: now_s)
    taken = dict.fromkeys("abc", 0)
    for client, pause_s in requests:
        now_s += pause_s
        taken[client] += limit.wait_s(client) == 0.0
        assert taken[client] <= 3.0 + 2.0 * now_s + 1e-6


def test_only_so_many_clients_are_remembered():
    limit = RateLimit(1.0, 1.0, clients=3, clock=lambda: 0.0)
    for number in range(10):
        limit.wait_s(str(number))
    assert len(limit._buckets) == 3
    assert limit.wait_s("9") > 0


def test_an_ipv6_client_is_its_network():
    assert client_of_address("2001:db8::1") == client_of_address("2001:db8::ffff:1")
    assert client_of_address("2001:db8::1") != client_of_address("2001:db8:0:1::1")
    assert client_of_address("10.0.0.1") != client_of_address("10.0.0.2")
    assert client_of_address("testclient") == "testclient"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8700", 200), ("localhost", 200), ("[::1]:8700", 200), ("[::1]", 200),
        ("evil.example", 400), ("127.0.0.1.evil.example:80", 400), ("localhost.evil:1", 400),
    ],
)  # fmt: skip
def test_a_loopback_service_answers_to_its_own_names_only(
    client: TestClient, host: str, status: int
):
    assert client.get("/healthz", headers={"Host": host}).status_code == status


def test_what_is_not_json_starts_nothing(client: TestClient, service: Service):
    """A page of another site can send plain text without asking first."""
    body = '{"model": "demo", "vram": "60MB"}'
    answer = client.post("/v1/studies", content=body, headers={"Content-Type": "text/plain"})
    assert answer.status_code == 422
    assert service.jobs.latest() == {}


@pytest.mark.parametrize("path", ["/healthz", "/v1/studies", "/absent", "/v1/configs/best"])
def test_every_answer_has_safe_headers(client: TestClient, path: str):
    headers = client.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Cache-Control"] == "no-store"


def test_the_documentation_may_load_its_scripts(client: TestClient):
    answer = client.get("/docs")
    assert answer.status_code == 200
    assert "Content-Security-Policy" not in answer.headers


def test_unknown_paths_and_methods_are_documents_too(client: TestClient):
    for answer, status in [
        (client.get("/nowhere"), 404),
        (client.put("/v1/studies"), 405),
        (client.get("/v1/studies/"), 404),
        (client.get("/v1/studies/..%2f..%2fetc%2fpasswd"), 404),
    ]:
        assert answer.status_code == status
        assert isinstance(answer.json()["error"]["message"], str)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/v1/studies", "GET, POST"), ("/v1/studies/a", "DELETE, GET"), ("/healthz", "GET")],
)
def test_a_wrong_method_is_told_the_right_ones(client: TestClient, path: str, allowed: str):
    answer = client.patch(path)
    assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)


def test_an_unexpected_error_says_nothing_of_itself(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch, caplog
):
    def fail(*_: object) -> None:
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr(type(service.seen_jobs), "latest", fail)
    with caplog.at_level(logging.ERROR):
        answer = client.get("/v1/studies")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "a secret of the inside" in caplog.text


def test_a_locked_store_is_said_with_a_time_to_come_back(
    client: TestClient, service: Service, folder, monkeypatch: pytest.MonkeyPatch
):
    def locked(*_: object) -> None:
        raise StoreError("the database is locked by another program")

    monkeypatch.setattr(type(service.jobs), "add", locked)
    answer = client.post("/v1/studies", json=REQUEST)
    assert (answer.status_code, "locked" in answer.text) == (503, True)
    assert int(answer.headers["Retry-After"]) > 0


def test_requests_are_counted_by_route_and_never_by_path(client: TestClient):
    client.get("/v1/studies/one")
    client.get("/v1/studies/two")
    client.get("/somewhere/else")
    client.request("BREW", "/healthz")
    text = client.get("/metrics").text
    line = 'expertune_service_requests_total{code="404",method="GET",route="%s"} %s.0'
    assert line % ("/v1/studies/{name}", 2) in text
    assert line % ("none", 1) in text
    assert 'method="other"' in text
    assert 'expertune_service_jobs{state="QUEUED"} 0.0' in text


def test_metrics_show_jobs_and_trials(served: Service):
    with client_of(served) as client:
        text = client.get("/metrics").text
    trials = re.findall(r'expertune_study_trials\{state="\w+",study="small"\} (\S+)', text)
    assert sum(map(float, trials)) == 5
