"""The HTTP side, spoken to by OpenAI's own client and by plain HTTP."""

from __future__ import annotations

import copy
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from fastapi.testclient import TestClient
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from engine import __version__ as engine_version
from engine.run.engine import Engine
from engine.run.generate import encode_prompt, generate
from engine.run.sampling import SamplingOptions
from engine.serve.openai.middleware import MOST_BODY_BYTES, body_limit, let_browsers_in
from engine.serve.openai.routes import Serving, create_app
from engine.serve.openai.tokenization import PromptReader, ServedModel
from tests.engine.serve.made import MODEL, ROOM, Running, eventually, serving

PROMPT = "The engine reads"


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[OpenAI]:
    with server.client as opened:
        yield opened


@pytest.fixture(scope="module")
def web(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as opened:
        yield opened


def post(web: httpx.Client, route: str = "completions", **fields: Any) -> httpx.Response:
    own = {"prompt": PROMPT} if route == "completions" else {"messages": [{"role": "user",
           "content": PROMPT}]}  # fmt: skip
    return web.post(f"/v1/{route}", json={"model": MODEL, **own, **fields})


def expected(engine: Engine, tokenizer: Any, tokens: int, chat: bool = False) -> str:
    ids = encode_prompt(tokenizer, PROMPT, chat=chat)
    return generate(engine, tokenizer, ids, max_tokens=tokens, sampling=SamplingOptions()).text


@pytest.fixture(scope="module")
def texts(engine: Engine, tokenizer: Any) -> tuple[str, str]:
    """What the model says behind PROMPT, raw and as an answer, before any server runs."""
    return expected(engine, tokenizer, 12), expected(engine, tokenizer, 12, chat=True)


def test_a_completion_is_the_engines_text(texts: tuple[str, str], client: OpenAI) -> None:
    found = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=12, temperature=0)
    assert found.choices[0].text == texts[0]
    assert found.choices[0].finish_reason == "length"
    assert found.usage is not None
    assert found.usage.completion_tokens == 12
    assert found.usage.total_tokens == found.usage.prompt_tokens + 12


def test_a_chat_is_the_engines_text(texts: tuple[str, str], client: OpenAI) -> None:
    found = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": PROMPT}],
        max_tokens=12,
        temperature=0,
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    assert found.choices[0].message.content == texts[1]
    assert found.choices[0].message.role == "assistant"


def test_an_answer_may_be_given_back_as_the_sdk_dumps_it(client: OpenAI) -> None:
    asked: Any = [{"role": "user", "content": PROMPT}]
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=asked, max_tokens=4
    )
    assert raw.headers["content-type"] == "application/json"
    dumped = raw.parse().choices[0].message.model_dump()
    assert dumped["tool_calls"] is None
    again: Any = client.chat.completions.create(
        model=MODEL, messages=[*asked, dumped, *asked], max_tokens=4
    )
    plain = {"role": "assistant", "content": dumped["content"]}
    counted: Any = client.chat.completions.create(
        model=MODEL, messages=[*asked, plain, *asked], max_tokens=4
    ).usage
    assert again.usage.prompt_tokens == counted.prompt_tokens


def test_a_streamed_completion_is_the_whole_one_in_pieces(
    texts: tuple[str, str], client: OpenAI
) -> None:
    stream = client.completions.create(
        model=MODEL,
        prompt=PROMPT,
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    pieces = [chunk.choices[0].text for chunk in chunks[:-1]]
    assert "".join(pieces) == texts[0]
    assert len(pieces) > 1
    reasons = [chunk.choices[0].finish_reason for chunk in chunks[:-1]]
    assert reasons == [None] * (len(pieces) - 1) + ["length"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12


def test_every_chunk_counts_if_that_is_requested(web: httpx.Client) -> None:
    # guidellm and AIPerf send both (vLLM's stream_options)
    options = {"include_usage": True, "continuous_usage_stats": True}
    fields = {"max_tokens": 4, "stream": True, "stream_options": options, "ignore_eos": True}
    for route in ("completions", "chat/completions"):
        text = post(web, route, **fields).text
        events = [line for line in text.split("\n\n") if line.startswith("data: {")]
        usages = [json.loads(event[6:])["usage"] for event in events]
        counts = [one["completion_tokens"] for one in usages]
        assert counts == sorted(counts)
        assert counts[-2:] == [4, 4]
        assert all(one["total_tokens"] > one["completion_tokens"] for one in usages)
        assert json.loads(events[-1][6:])["choices"] == []


def test_a_streamed_chat_has_a_role_pieces_a_reason_and_an_end(
    texts: tuple[str, str], web: httpx.Client
) -> None:
    answer = post(web, "chat/completions", max_tokens=12, temperature=0, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.text.strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert all("role" not in delta for delta in deltas[1:])
    assert "".join(delta.get("content", "") for delta in deltas) == texts[1]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_a_stop_string_is_never_sent_whole_or_streamed(
    texts: tuple[str, str], client: OpenAI
) -> None:
    word = texts[0][2:4]
    before = texts[0][: texts[0].index(word)]
    asked: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**asked, stop=[word, "never"])
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == (before, "stop")
    streamed = list(client.completions.create(**asked, stop=word, stream=True))
    assert "".join(chunk.choices[0].text for chunk in streamed) == before
    assert streamed[-1].choices[0].finish_reason == "stop"


def test_choices_and_prompts_are_numbered_and_counted_once(client: OpenAI) -> None:
    found = client.completions.create(
        model=MODEL, prompt=[PROMPT, "A router"], n=2, max_tokens=3, seed=1
    )
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert found.choices[0].text != found.choices[1].text
    assert found.usage is not None
    assert found.usage.completion_tokens == 12
    one = client.completions.create(model=MODEL, prompt=[PROMPT, "A router"], max_tokens=1)
    assert one.usage is not None
    assert found.usage.prompt_tokens == one.usage.prompt_tokens


def test_a_seed_repeats(client: OpenAI) -> None:
    def text(seed: int) -> str:
        found = client.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=8, temperature=1.5, seed=seed
        )
        return found.choices[0].text

    assert text(3) == text(3) != text(4)


def test_logprobs_of_a_chat(client: OpenAI) -> None:
    found = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": PROMPT}],
        max_tokens=3,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
    )
    assert found.choices[0].logprobs is not None
    content = found.choices[0].logprobs.content or []
    assert len(content) == 3
    for one in content:
        assert [one.token, one.logprob] == [one.top_logprobs[0].token, one.top_logprobs[0].logprob]
        assert len(one.top_logprobs) == 2


def test_logprobs_of_a_completion_stand_side_by_side(client: OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": MODEL, "prompt": PROMPT, "max_tokens": 3, "temperature": 0, "logprobs": 2,
    }  # fmt: skip
    found = client.completions.create(**asked).choices[0].logprobs
    assert found is not None
    assert [len(found.tokens or []), len(found.token_logprobs or [])] == [3, 3]
    assert (found.text_offset or [])[0] == 0
    streamed = list(client.completions.create(**asked, stream=True))
    pieces = [chunk.choices[0].logprobs for chunk in streamed]
    together = [value for piece in pieces if piece for value in piece.token_logprobs or []]
    assert together == found.token_logprobs


@pytest.mark.parametrize(
    ("fields", "status", "kind", "code", "says"),
    [
        ({"model": "other"}, 404, "not_found_error", "model_not_found", "it serves 'tiny'"),
        ({"prompt": [5] * ROOM}, 400, "invalid_request_error", "context_length_exceeded",
         "kv.max_tokens"),
        ({"max_tokens": ROOM + 1}, 400, "invalid_request_error", "context_length_exceeded",
         "capacity of 256"),
        ({"tols": []}, 400, "invalid_request_error", None, "does not know the parameter 'tols'"),
        ({"echo": True}, 400, "invalid_request_error", None,
         "echo: it asks for something that this server does not do; leave it out, or send null or "
         "false"),
        ({"temperature": 9}, 400, "invalid_request_error", None, "temperature"),
    ],
)  # fmt: skip
def test_errors_have_openais_shape(
    web: httpx.Client, fields: Any, status: int, kind: str, code: str | None, says: str
) -> None:
    answer = post(web, **fields)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == (kind, code)
    assert says in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


def test_openais_client_reads_errors_as_its_own(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"kv\.max_tokens") as raised:
        client.completions.create(model=MODEL, prompt=[5] * ROOM)
    assert raised.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="a")


def test_only_the_routes_of_the_contract_are_there(server: Running, web: httpx.Client) -> None:
    document = web.get("/openapi.json").json()
    assert {(path, *methods) for path, methods in document["paths"].items()} == {
        ("/v1/models", "get"),
        ("/v1/models/{model}", "get"),
        ("/v1/completions", "post"),
        ("/v1/chat/completions", "post"),
        ("/health", "get"),
        ("/healthz", "get"),
        ("/version", "get"),
        ("/metrics", "get"),
    }
    for path in ("/", "/docs", "/redoc", "/v1", "/v1/embeddings"):
        answer = web.get(path)
        assert answer.status_code == 404
        assert answer.json()["error"]["message"] == (
            f"GET {path} is no route here; GET /openapi.json lists them"
        )
    refused = web.get("/v1/completions")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert refused.json()["error"]["message"] == "/v1/completions takes POST, not GET"
    assert web.options("/v1/completions").headers["allow"] == "POST"


def test_head_is_get_without_a_body(web: httpx.Client) -> None:
    for path in ("/health", "/v1/models", "/metrics"):
        answer = web.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
    assert web.head("/v1/completions").status_code == 405


def test_a_body_may_hold_what_the_context_takes_and_little_more() -> None:
    eight_prompts = 8 * 4096 * 16
    assert eight_prompts < body_limit(4096) < 2 * eight_prompts
    assert body_limit(1 << 20) == MOST_BODY_BYTES


def test_models_names_the_model_and_its_room(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == MODEL
    assert model.model_extra is not None
    assert model.model_extra["max_model_len"] == ROOM
    assert client.models.retrieve(MODEL) == model
    with pytest.raises(openai.NotFoundError, match=f"it serves '{MODEL}'") as raised:
        client.models.retrieve("lab/other")
    assert raised.value.code == "model_not_found"


def test_an_id_with_slashes_is_one_model(server: Running) -> None:
    # llama-stack asks models.retrieve before anything else (vllm-project/vllm#43127)
    served = ServedModel("lab/group/tiny", ROOM, 300, 1)
    app = create_app(Serving(served, PromptReader(served, None), server.loop, server.meters))
    with TestClient(app) as web:
        for path in ("lab/group/tiny", "lab%2Fgroup%2Ftiny"):
            found = web.get(f"/v1/models/{path}")
            assert (found.status_code, found.json()["id"]) == (200, "lab/group/tiny")
        assert web.get("/v1/models/lab/group").status_code == 404


def test_an_answer_is_created_when_it_is_asked_for(server: Running, tokenizer: Any) -> None:
    # sgl-project/sglang#4637: it stood still
    served, clock = ServedModel(MODEL, ROOM, 300, 1), iter((100.9, 200.5, 300.0))
    reader = PromptReader(served, copy.deepcopy(tokenizer))
    app = create_app(Serving(served, reader, server.loop, server.meters, lambda: next(clock)))
    with TestClient(app) as web:
        body = {"model": MODEL, "prompt": "a", "max_tokens": 2}
        assert web.post("/v1/completions", json=body).json()["created"] == 100
        streamed = web.post("/v1/completions", json={**body, "stream": True}).text
        events = [line for line in streamed.split("\n\n") if line.startswith("data: {")]
        assert {json.loads(event[6:])["created"] for event in events} == {200}
        chat = {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
        assert web.post("/v1/chat/completions", json=chat).json()["created"] == 300


def test_health_and_version(web: httpx.Client) -> None:
    assert web.get("/health").json()["status"] == "ok"
    assert web.get("/version").json() == {"version": engine_version}


def test_what_is_no_json_and_what_is_too_large_is_refused(web: httpx.Client) -> None:
    torn = web.post("/v1/completions", content=b"{", headers={"content-type": "application/json"})
    assert torn.status_code == 400
    assert torn.json()["error"]["message"] == "the body is not valid JSON"
    large = post(web, prompt="a" * body_limit(ROOM))
    assert (large.status_code, large.json()["error"]["type"]) == (413, "invalid_request_error")


@pytest.mark.parametrize(
    "headers",
    [{}, {"content-type": "application/x-www-form-urlencoded"}, {"content-type": "text/plain"}],
)
def test_json_is_read_whatever_its_type_is_called(
    web: httpx.Client, headers: dict[str, str]
) -> None:
    # `curl -d` without a header (vllm-project/vllm#11171, fastapi/fastapi#3373)
    body = json.dumps({"model": MODEL, "prompt": "a", "max_tokens": 1}).encode()
    assert web.post("/v1/completions", content=body, headers=headers).status_code == 200
    form = web.post("/v1/completions", content=b"model=tiny&prompt=a", headers=headers)
    assert form.status_code == 400
    assert "send JSON, with Content-Type: application/json" in form.json()["error"]["message"]


def test_a_packed_body_and_a_long_name_are_refused_in_words(web: httpx.Client) -> None:
    packed = web.post("/v1/completions", content=b"\x1f\x8b", headers={"content-encoding": "gzip"})
    assert packed.status_code == 400
    assert "reads no Content-Encoding" in packed.json()["error"]["message"]
    for answer in (post(web, **{"x" * 10_000: 1}), web.get("/" + "x" * 10_000)):
        assert 400 <= answer.status_code < 500
        assert len(answer.json()["error"]["message"]) < 400


def test_a_client_that_leaves_in_its_own_body_is_no_fault_of_the_server(
    server: Running, web: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    with socket.create_connection(address) as own:
        own.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
    labels = 'code="499",model_name="tiny",route="/v1/completions"'
    eventually(lambda: f"expertune_requests_total{{{labels}}}" in web.get("/metrics").text)
    assert "failed" not in caplog.text


def test_pages_of_the_given_origins_may_read_answers_and_errors(server: Running) -> None:
    served = ServedModel(MODEL, ROOM, 300, 1)
    reader = PromptReader(served, None)

    def open_to(*origins: str) -> TestClient:
        app = create_app(Serving(served, reader, server.loop, server.meters, origins=origins))
        return TestClient(let_browsers_in(app, origins))

    page, headers = "http://localhost:3000", {"origin": "http://localhost:3000"}
    asks = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
    }
    allowed = "access-control-allow-origin"
    with open_to(page) as web:
        before = web.options("/v1/chat/completions", headers={**headers, **asks})
        assert (before.status_code, before.headers[allowed]) == (200, page)
        assert "authorization" in before.headers["access-control-allow-headers"].lower()
        for path, status in (("/v1/models", 200), ("/nothing", 404), ("/v1/completions", 405)):
            answer = web.get(path, headers=headers)
            assert (answer.status_code, answer.headers[allowed]) == (status, page)
        other = web.get("/v1/models", headers={"origin": "http://elsewhere.example"})
        assert allowed not in other.headers
    with open_to("*") as web:
        assert web.get("/v1/models", headers=headers).headers[allowed] == "*"
    with open_to() as web:
        refused = web.get("/v1/models", headers=headers)
        assert (refused.status_code, allowed in refused.headers) == (403, False)


@pytest.fixture
def slow_forward(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer takes long enough that its client can hang up before it is there."""
    forward = engine.forward

    def slow(*arguments: Any, **named: Any) -> Any:
        time.sleep(0.02)
        return forward(*arguments, **named)

    monkeypatch.setattr(engine, "forward", slow)


@pytest.mark.usefixtures("slow_forward")
def test_a_client_that_hangs_up_ends_its_stream(server: Running, client: OpenAI) -> None:
    before = server.meters.totals.cancelled
    stream = client.completions.create(
        model=MODEL, prompt="a", max_tokens=ROOM - 1, stream=True, temperature=0
    )
    next(iter(stream))
    stream.close()
    eventually(lambda: server.meters.totals.cancelled == before + 1)
    eventually(lambda: server.loop.running == 0)


@pytest.mark.usefixtures("slow_forward")
def test_a_client_that_hangs_up_ends_its_whole_answer_too(server: Running) -> None:
    before = server.meters.totals.cancelled
    with pytest.raises(httpx.ReadTimeout), httpx.Client(base_url=server.url, timeout=0.3) as own:
        post(own, max_tokens=ROOM - 20, ignore_eos=True)
    eventually(lambda: server.meters.totals.cancelled == before + 1)
    eventually(lambda: server.loop.running == 0)


def test_more_than_an_empty_queue_takes_is_400_not_429(web: httpx.Client) -> None:
    # clients repeat after a 429, and this one would never fit
    refused = post(web, prompt=[PROMPT] * 8, n=8)
    assert refused.status_code == 400
    assert "asks for 64 sequences" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("route", "fields", "param", "says"),
    [
        ("completions", {"prompt": ["a"] * 9}, "prompt", "one or a list of 1 to 8"),
        ("completions", {"prompt": {"a": 1}}, "prompt", "text or token ids"),
        ("completions", {"stop": ["a"] * 5}, "stop", "a list of up to 4"),
        ("completions", {"logprobs": 6}, "logprobs", "from 0 to 5"),
        ("chat/completions", {"max_tokens": 0}, "max_tokens", "above 0, or -1"),
        ("chat/completions", {"messages": [{"role": "user", "content": 5}]}, "messages.0.content",
         "must be text, or a list of parts"),
        ("chat/completions", {"chat_template_kwargs": {"tools": True}}, "chat_template_kwargs",
         "chat_template_kwargs: tools cannot be set"),
    ],
)  # fmt: skip
def test_what_fits_none_of_several_types_is_told_all_of_them(
    web: httpx.Client, route: str, fields: dict[str, Any], param: str, says: str
) -> None:
    error = post(web, route, **fields).json()["error"]
    assert error["param"] == param
    assert says in error["message"]


def test_models_are_listed_behind_a_slash_too(web: httpx.Client) -> None:
    assert web.get("/v1/models/").json() == web.get("/v1/models").json()


def test_a_full_queue_answers_429_and_says_when_to_come_again(
    engine: Engine, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, forward = threading.Event(), engine.forward

    def waiting(*arguments: Any, **named: Any) -> Any:
        assert gate.wait(60)
        return forward(*arguments, **named)

    monkeypatch.setattr(engine, "forward", waiting)
    with (
        serving(engine, tokenizer, queue=1) as small,
        httpx.Client(base_url=small.url, timeout=60) as own,
    ):
        answers: list[httpx.Response] = []
        threads = [
            threading.Thread(target=lambda: answers.append(post(own, max_tokens=2)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        eventually(lambda: small.loop.running + small.loop.waiting == 4)
        refused = post(own)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json()["error"]["type"] == "rate_limit_error"
        gate.set()
        for thread in threads:
            thread.join(60)
        assert [answer.status_code for answer in answers] == [200] * 4
        metrics = own.get("/metrics").text
    labels = 'code="429",model_name="tiny",route="/v1/completions"'
    assert f"expertune_requests_total{{{labels}}} 1.0" in metrics


def test_a_failed_engine_is_an_error_in_the_stream_and_in_health(
    engine: Engine, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise MemoryError

    with serving(engine, tokenizer) as own, monkeypatch.context() as patch:
        patch.setattr(engine, "forward", failing)
        patch.setattr(engine, "configure", failing)
        with pytest.raises(openai.APIError, match="the engine failed: MemoryError"):
            list(own.client.completions.create(model=MODEL, prompt="a", stream=True))
        eventually(lambda: bool(own.failures))
        health = httpx.get(f"{own.url}/healthz")
        assert (health.status_code, health.json()["status"]) == (503, "failed")
        with pytest.raises(openai.InternalServerError, match="cannot be configured again"):
            own.client.completions.create(model=MODEL, prompt="a")


def test_metrics_are_prometheus_text_with_what_the_contract_names(
    web: httpx.Client, client: OpenAI
) -> None:
    client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=3)
    answer = web.get("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert set(families) >= {
        "expertune_requests",
        "expertune_sequences",
        "expertune_tokens",
        "expertune_ttft_seconds",
        "expertune_tpot_seconds",
        "expertune_expert_lookups",
        "expertune_expert_hit_rate",
        "expertune_queue_length",
        "expertune_running",
    }
    rates = {s.labels["phase"]: s.value for s in families["expertune_expert_hit_rate"].samples}
    assert 0 < rates["decode"] <= 1
    assert web.get("/healthz").json() == {"status": "ok", "running": 0, "waiting": 0}


def test_no_secret_and_no_text_is_logged(
    server: Running, client: OpenAI, web: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for name in ("httpx", "openai", "httpcore"):
        caplog.set_level(logging.CRITICAL, name)
    client.completions.create(model=MODEL, prompt="my private text", max_tokens=2)
    post(web, prompt="my private text", temperature=9)
    post(web, prompt={"my private text": 1})
    web.get("/nothing", headers={"authorization": "Bearer sk-secret-key"})
    assert "sk-secret-key" not in caplog.text
    assert "private" not in caplog.text
