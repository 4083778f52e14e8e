"""The HTTP application: six routes, nothing else.

In: requests in OpenAI's shape. Out: whole answers or server-sent events. A client that disconnects
cancels its sequences.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

from engine import __version__
from engine.serve.batching.metrics import Meters
from engine.serve.batching.scheduler import EngineLoop
from engine.serve.batching.sequence import SequenceRequest
from engine.serve.openai.access import Access
from engine.serve.openai.errors import ApiError, add_handlers
from engine.serve.openai.formats import ChatFormat, Choice, CompletionFormat, Format
from engine.serve.openai.json_body import JsonRoute
from engine.serve.openai.middleware import CountedRequests, HeadLikeGet, body_limit
from engine.serve.openai.openapi import describe_api
from engine.serve.openai.request_stream import RequestStream
from engine.serve.openai.requests import ChatRequest, CompletionRequest, Generation
from engine.serve.openai.responses import (
    ChatCompletion,
    Completion,
    ErrorAnswer,
    Health,
    Model,
    Models,
    Version,
)
from engine.serve.openai.stream_usage import StreamUsage, usage_of
from engine.serve.openai.tokenization import PromptReader, ServedModel, check_model

PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_EVENTS: dict[str, Any] = {"content": {"text/event-stream": {}}}
_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in (
        (400, "The request is not valid, or does not fit"),
        (401, "The API key is missing or wrong, where one is needed"),
        (403, "A page of an origin that was not named sent it"),
        (404, "Another model is served"),
        (413, "The body is too large"),
        (429, "The queue is full"),
        (500, "The engine failed"),
        (503, "The engine is gone"),
    )
}


@dataclass(frozen=True)
class Serving:
    """The objects that the routes use. Only one thread at a time uses the reader. clock: seconds
    since 1970; local_only, key_digest, origins: as of Access."""

    served: ServedModel
    reader: PromptReader
    engine: EngineLoop
    meters: Meters
    clock: Callable[[], float] = field(default=time.time)
    local_only: bool = False
    key_digest: str = ""
    origins: Collection[str] = ()


def create_app(serving: Serving) -> FastAPI:
    """Create the application of one server."""
    app = FastAPI(title="expertune deployment", docs_url=None, redoc_url=None)
    add_handlers(app)
    app.add_middleware(
        Access,
        local_only=serving.local_only,
        key_digest=serving.key_digest,
        origins=serving.origins,
    )
    most_bytes = body_limit(serving.served.max_model_len)
    app.add_middleware(CountedRequests, meters=serving.meters, most_bytes=most_bytes)
    app.add_middleware(HeadLikeGet)
    app.include_router(_generation(serving))
    _add_models(app, serving.served)
    _add_state(app, serving)
    describe_api(app, serving.served)
    return app


def _generation(serving: Serving) -> APIRouter:
    served, one_at_a_time = serving.served, anyio.CapacityLimiter(1)
    routes = APIRouter(route_class=JsonRoute)

    @routes.post(
        "/v1/completions",
        response_model=Completion,
        responses={200: _EVENTS, **_FAILURES},
    )
    async def complete(body: CompletionRequest, request: Request) -> Response:
        """Continue a text."""
        created = int(serving.clock())
        wanted = await anyio.to_thread.run_sync(
            serving.reader.completion, body, limiter=one_at_a_time
        )
        writer = CompletionFormat(
            f"cmpl-{uuid.uuid4().hex}", created, served.name, wanted[0].logprobs is not None
        )
        return await _respond(serving.engine, request, body, wanted, writer)

    @routes.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={200: _EVENTS, **_FAILURES},
    )
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        created = int(serving.clock())
        wanted = await anyio.to_thread.run_sync(serving.reader.chat, body, limiter=one_at_a_time)
        asked = wanted[0].logprobs is not None
        writer = ChatFormat(f"chatcmpl-{uuid.uuid4().hex}", created, served.name, asked)
        return await _respond(serving.engine, request, body, wanted, writer)

    return routes


def _add_models(app: FastAPI, served: ServedModel) -> None:
    one = Model(id=served.name, created=served.created, max_model_len=served.max_model_len)

    @app.get("/v1/models", response_model=Models)
    @app.get("/v1/models/", include_in_schema=False)
    async def models() -> Models:
        """List the served model."""
        return Models(data=[one])

    @app.get("/v1/models/{model:path}", response_model=Model, responses={404: _FAILURES[404]})
    async def model(model: str) -> Model:
        """Describe the served model. Its id may contain slashes, as ids of a hub do."""
        check_model(model, served)
        return one


def _add_state(app: FastAPI, serving: Serving) -> None:
    engine = serving.engine

    @app.get("/version", response_model=Version)
    async def version() -> Version:
        """Name the version of the server."""
        return Version(version=__version__)

    @app.get("/health", response_model=Health, responses={503: {"model": Health}})
    @app.get("/healthz", response_model=Health, responses={503: {"model": Health}})
    async def health() -> JSONResponse:
        """Report whether the engine works."""
        failed = engine.failure is not None
        found = Health(
            status="failed" if failed else "ok", running=engine.running, waiting=engine.waiting
        )
        return JSONResponse(found.model_dump(), 503 if failed else 200)

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        """Return the metrics in Prometheus's text format."""
        return Response(serving.meters.exposition(), media_type=PROMETHEUS_TEXT)


async def _respond(
    engine: EngineLoop,
    request: Request,
    body: Generation,
    wanted: Sequence[SequenceRequest],
    writer: Format,
) -> Response:
    stream = RequestStream(engine, wanted)
    prompt_tokens = sum(len(one.prompt) for one in wanted[:: body.n or 1])
    choices = [Choice(logprobs=None if one.logprobs is None else []) for one in wanted]
    if body.stream:
        usage = StreamUsage.of(body, choices, prompt_tokens)
        events = _events(stream, choices, writer, usage)
        return StreamingResponse(events, media_type="text/event-stream")
    try:
        await _finish_or_hang_up(_collect(stream, choices), request)
    finally:
        stream.close()
    return JSONResponse(writer.whole(choices, usage_of(choices, prompt_tokens)).model_dump())


async def _collect(stream: RequestStream, choices: Sequence[Choice]) -> None:
    async for piece in stream.pieces():
        choices[piece.index].add(piece.output)


async def _finish_or_hang_up(work: Coroutine[Any, Any, None], request: Request) -> None:
    """Wait for the work, or cancel it when the client disconnects. Raises what the work raises."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        else:
            raise ApiError(499, "the client hung up")
    finally:
        for task in (working, gone):
            task.cancel()
            with suppress(asyncio.CancelledError, ApiError):
                await task


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(
    stream: RequestStream, choices: Sequence[Choice], writer: Format, usage: StreamUsage
) -> AsyncIterator[str]:
    """Server-sent events. Closes its sequences on every exit."""
    try:
        for index in range(len(choices)):
            if (opening := writer.opening(index, usage.so_far())) is not None:
                yield _event(opening)
        async for piece in stream.pieces():
            choices[piece.index].add(piece.output)
            yield _event(writer.chunk(piece.index, piece.output, usage.so_far()))
        if (total := usage.total()) is not None:
            yield _event(writer.closing(total))
    except ApiError as error:
        yield f"data: {json.dumps({'error': error.problem.model_dump()})}\n\n"
    finally:
        stream.close()
    yield "data: [DONE]\n\n"


def _event(data: BaseModel) -> str:
    return f"data: {data.model_dump_json()}\n\n"
