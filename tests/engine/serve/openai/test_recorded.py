"""What real clients sent to `tune deploy`, replayed: every answer has the shape that they read.

One file for each client, with its version, recorded between it and a served demo model. OpenAI's
own types are the oracle of the shapes; no other client is needed.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from engine.run.engine import Engine
from engine.serve.openai.routes import Serving, create_app
from engine.serve.openai.tokenization import PromptReader, ServedModel
from tests.engine.serve.made import ROOM, looping

FILES = sorted((Path(__file__).parent / "recorded").glob("*.json"))
REQUESTS = [
    pytest.param(request, id=f"{file.stem}-{number}-{request['path']}")
    for file in FILES
    for number, request in enumerate(json.loads(file.read_text(encoding="utf-8"))["requests"])
]


@pytest.fixture(scope="module")
def web(engine: Engine, tokenizer: Any) -> Iterator[TestClient]:
    """The application under the name that the clients asked for."""
    served = ServedModel("demo", ROOM, engine.facts.vocabulary, 1)
    with looping(engine, tokenizer) as (loop, meters, _):
        reader = PromptReader(served, copy.deepcopy(tokenizer))
        with TestClient(create_app(Serving(served, reader, loop, meters))) as opened:
            yield opened


@pytest.mark.parametrize("sent", REQUESTS)
def test_a_recorded_request_gets_what_its_client_reads(
    web: TestClient, sent: dict[str, Any]
) -> None:
    body = None if sent["body"] is None else json.dumps(sent["body"]).encode()
    answer = web.request(sent["method"], sent["path"], headers=sent["headers"], content=body)
    assert answer.status_code == sent["status"], answer.text
    if sent["method"] == "HEAD" or sent["path"] in ("/health", "/metrics"):
        return
    if sent["status"] >= 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    elif sent["path"].startswith("/v1/models"):
        found = answer.json()
        assert [Model.model_validate(one).id for one in found.get("data", [found])] == ["demo"]
    elif sent["body"].get("stream"):
        check_stream(answer.text, sent)
    else:
        check_whole(answer.json(), sent)


def check_whole(answer: Any, sent: dict[str, Any]) -> None:
    asked = sent["body"]
    kind = ChatCompletion if "messages" in asked else Completion
    found: Any = kind.model_validate(answer, strict=True)
    assert len(found.choices) == (asked.get("n") or 1)
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    if asked.get("ignore_eos"):
        most = asked.get("max_tokens") or asked["max_completion_tokens"]
        assert found.usage.completion_tokens == most
    if asked.get("logprobs"):
        assert all(choice.logprobs is not None for choice in found.choices)


def check_stream(text: str, sent: dict[str, Any]) -> None:
    asked = sent["body"]
    lines = [line.removeprefix("data: ") for line in text.strip().split("\n\n")]
    assert lines[-1] == "[DONE]"
    chunks = [read_chunk(json.loads(line), chat="messages" in asked) for line in lines[:-1]]
    assert len({chunk.id for chunk in chunks}) == 1
    options = asked.get("stream_options") or {}
    if options.get("include_usage"):
        assert chunks[-1].choices == []
        usage = chunks[-1].usage
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        if asked.get("ignore_eos"):
            most = asked.get("max_tokens") or asked["max_completion_tokens"]
            assert usage.completion_tokens == most
    else:
        assert all(chunk.choices for chunk in chunks)
    counted = [chunk.usage is not None for chunk in chunks[:-1]]
    assert all(counted) if options.get("continuous_usage_stats") else not any(counted)
    choices = [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]
    reasons = [choice["finish_reason"] for choice in choices]
    assert reasons[:-1] == [None] * (len(reasons) - 1)
    assert reasons[-1] in ("stop", "length")


def read_chunk(sent: dict[str, Any], *, chat: bool) -> Any:
    """OpenAI's type has no null as the reason of a text that goes on, though its API sends it."""
    if chat:
        return ChatCompletionChunk.model_validate(sent)
    going_on = [{**one, "finish_reason": one["finish_reason"] or "stop"} for one in sent["choices"]]
    return Completion.model_validate({**sent, "choices": going_on})


def test_every_recording_names_its_client_and_version() -> None:
    assert len(FILES) >= 7
    for file in FILES:
        recording = json.loads(file.read_text(encoding="utf-8"))
        assert recording["client"]
        assert recording["version"][0].isdigit()
        assert any(one["method"] == "POST" for one in recording["requests"])
