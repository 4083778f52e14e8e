"""Targets: requests of the OpenAI-compatible server and of the REST service, in process."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

from fastapi.testclient import TestClient
from transformers import AutoTokenizer

from engine.device.cpu import CpuDevice
from engine.run.engine import Engine
from engine.serve.openai.routes import Serving, create_app
from engine.serve.openai.tokenization import PromptReader, ServedModel
from tests.engine.conftest import make_tiny
from tests.engine.serve.made import MODEL, configure, looping
from tests.fuzz.documents import read_json, write_bytes
from tests.fuzz.oracle import Arena, FindingError, Run
from tests.fuzz.target import Shape, Target
from tests.tuner.service.made import REQUEST, MadeChild, client_of
from tuner.service.service import open_service
from tuner.service.settings import ServiceSettings

JSON = Shape(read_json, write_bytes)
ROOM = 32  # tokens of prompt and answer
AS_JSON = {"content-type": "application/json"}


def _check(answer: Any) -> None:
    """No fault of the server, and a body that is what it says."""
    if answer.status_code >= 500 or "server_error" in answer.text:
        raise FindingError(f"{answer.status_code}: {answer.text[:300]}")
    if answer.content and answer.headers.get("content-type", "").startswith("application/json"):
        answer.json()


def _plain_request(client: TestClient, data: bytes) -> None:
    """An input is a JSON list of method, path, headers and body; what is not is a path."""
    try:
        found = json.loads(data)
        method, path, headers, body = found
        sent = {str(k): str(v).encode("utf-8", "replace") for k, v in dict(headers).items()}
    except (ValueError, TypeError, RecursionError):
        method, path, sent, body = "GET", data.decode("latin-1"), {}, ""
    word = "".join(char for char in str(method) if "!" <= char <= "~")[:20] or "GET"  # as HTTP's
    content = body.encode("utf-8", "replace") if isinstance(body, str) else json.dumps(body)
    try:
        request = client.build_request(
            word, f"/{str(path)[:4000].removeprefix('/')}", headers=sent, content=content
        )
    except Exception:  # noqa: BLE001 (no client can send it)
        return
    _check(client.send(request))


@contextlib.contextmanager
def _openai(place: Arena, send: Callable[[TestClient, bytes], None]) -> Iterator[Run]:
    folder = make_tiny(place.given / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    engine = Engine(folder, CpuDevice(), place.cache)
    try:
        configure(engine, **{"kv.max_tokens": ROOM})
        engine.model.model.generation_config.eos_token_id = list(range(0, 300, 2))
        with looping(engine, tokenizer) as (loop, meters, failures):
            served = ServedModel(MODEL, ROOM, engine.facts.vocabulary, 1)
            reader = PromptReader(served, copy.deepcopy(tokenizer))
            app = create_app(Serving(served, reader, loop, meters))
            with TestClient(app, raise_server_exceptions=False) as client:

                def run(data: bytes) -> None:
                    send(client, data)
                    if failures:
                        raise FindingError(f"the engine failed: {failures}")

                yield run
    finally:
        engine.close()


def _post(path: str) -> Callable[[TestClient, bytes], None]:
    return lambda client, data: _check(client.post(path, content=data, headers=AS_JSON))


def openai(send: Callable[[TestClient, bytes], None]) -> Callable[[Arena], Any]:
    """Opens a target of the OpenAI-compatible server on a tiny model."""
    return lambda place: _openai(place, send)


@contextlib.contextmanager
def _service(place: Arena, send: Callable[[TestClient, bytes], None]) -> Iterator[Run]:
    def ended(*_: object) -> MadeChild:
        child = MadeChild()
        child.end(0)
        return child

    settings = ServiceSettings(
        storage=f"sqlite:///{place.root / 'data' / 'fuzz.db'}",
        folder=place.root / "data" / "service",
        requests_per_s=100_000.0,
        max_waiting=1000,
        poll_s=0.05,
        grace_s=5.0,
    )
    with open_service(settings, ended) as opened, client_of(opened) as client:
        client.post("/v1/studies", json=REQUEST)
        yield lambda data: send(client, data)


def service(send: Callable[[TestClient, bytes], None]) -> Callable[[Arena], Any]:
    """Opens a target of the REST service, whose studies end at once."""
    return lambda place: _service(place, send)


CHAT = {
    "model": MODEL,
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}], "name": "n"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "b"},
    ],
    "max_completion_tokens": 3, "temperature": 0.5, "top_p": 0.9, "seed": 1, "n": 1, "stop": ["x"],
    "logprobs": True, "top_logprobs": 2, "chat_template_kwargs": {"thinking": False},
}  # fmt: skip
COMPLETION = {
    "model": MODEL, "prompt": ["a", "b c"], "max_tokens": 3, "temperature": 1, "top_k": 5,
    "min_p": 0.1, "frequency_penalty": 0.5, "presence_penalty": -0.5, "repetition_penalty": 1.1,
    "logit_bias": {"5": 1.5}, "logprobs": 2, "stop": "q", "stream": True, "min_tokens": 1,
    "stream_options": {"include_usage": True}, "ignore_eos": False, "echo": False, "suffix": None,
}  # fmt: skip
IDS = {"prompt": [[1, 2], [3]], "max_tokens": 2, "best_of": 1, "temperature": 0}
OPENAI = (
    ["POST", "/v1/completions", AS_JSON, IDS],
    ["POST", "/v1/chat/completions", {"content-type": "text/plain", "accept": "*/*"}, CHAT],
    ["GET", "/v1/models/tiny", {"host": "localhost:80", "authorization": "Bearer x"}, ""],
    ["GET", "/metrics", {}, ""],
    ["HEAD", "/healthz", {"origin": "http://a.b"}, ""],
)
STUDY = {
    **REQUEST, "ram": "8GB", "disk": 10**9, "device": "cpu", "trials": 5, "timeout_s": "1h30m",
    "objectives": ["output_tps"], "sampler": "tpe", "seed": 3, "min_quality": 0.9,
    "max_ttft_ms": 100, "prompts": ["a", "b"], "chat": False, "prompt_tokens": 8, "tasks": ["t"],
    "output_tokens": 4, "sequences": 2, "limit": 5,
    "space": {"cache.expert_bytes": ["25%", "auto"], "precision.bits": [4, 16]},
}  # fmt: skip
REST = (
    ["POST", "/v1/studies", AS_JSON, REQUEST],
    ["GET", "/v1/studies/first", {"host": "localhost"}, ""],
    ["GET", "/v1/studies/first/trials", {}, ""],
    ["GET", "/v1/studies/first/front", {"accept-encoding": "gzip"}, ""],
    ["DELETE", "/v1/studies/first", {"content-length": "0"}, ""],
    ["GET", "/v1/studies/first/events", {"last-event-id": "end"}, ""],
    ["GET", "/v1/configs/best?model=demo&device=cpu&vram=8GB&goal=knee", {"etag": "*"}, ""],
    ["GET", "/openapi.json", {}, ""],
    ["GET", "/metrics", {"x-forwarded-for": "1.2.3.4"}, ""],
)  # fmt: skip


def _bytes(*values: Any) -> Callable[[], list[bytes]]:
    return lambda: [json.dumps(value).encode() for value in values]


TARGETS = (
    Target(
        "openai_chat", openai(_post("/v1/chat/completions")), _bytes(CHAT), JSON, cases=40,
        most_s=30,
    ),
    Target(
        "openai_completion", openai(_post("/v1/completions")), _bytes(COMPLETION, IDS), JSON,
        cases=40, most_s=30,
    ),
    Target("openai_request", openai(_plain_request), _bytes(*OPENAI), JSON, cases=40, most_s=30),
    Target("rest_study", service(_post("/v1/studies")), _bytes(REQUEST, STUDY), JSON, cases=40),
    Target("rest_request", service(_plain_request), _bytes(*REST), JSON, cases=40),
)  # fmt: skip
