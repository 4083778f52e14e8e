"""The HTTP application: six routes, nothing else.

In: requests in OpenAI's shape. Out: whole answers or server-sent events. A client that disconnects
cancels its sequences.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

from engine.serve.batching.metrics import Meters
from engine.serve.batching.scheduler import EngineLoop
from engine.serve.batching.sequence import SequenceRequest
from engine.serve.openai.errors import ApiError, add_handlers
from engine.serve.openai.formats import ChatFormat, Choice, CompletionFormat, Format
from engine.serve.openai.middleware import CountedRequests
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
    PromptDetails,
    Usage,
)
from engine.serve.openai.tokenization import PromptReader, ServedModel

PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_EVENTS: dict[str, Any] = {"content": {"text/event-stream": {}}}
_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in (
        (400, "The request is not valid, or does not fit"),
        (404, "Another model is served"),
        (413, "The body is too large"),
        (429, "The queue is full"),
        (500, "The engine failed"),
        (503, "The engine is gone"),
    )
}


@dataclass(frozen=True)
class Serving:
    """The objects that the routes use. Only one thread at a time uses the reader."""

    served: ServedModel
    reader: PromptReader
    engine: EngineLoop
    meters: Meters


def create_app(serving: Serving) -> FastAPI:
    """Create the application of one server."""
    app = FastAPI(title="expertune deployment", docs_url=None, redoc_url=None)
    add_handlers(app)
    app.add_middleware(CountedRequests, meters=serving.meters)
    _add_generation(app, serving)
    _add_reading(app, serving)
    describe_api(app, serving.served)
    return app


def _add_generation(app: FastAPI, serving: Serving) -> None:
    served, one_at_a_time = serving.served, anyio.CapacityLimiter(1)

    @app.post(
        "/v1/completions",
        response_model=Completion,
        responses={200: _EVENTS, **_FAILURES},
    )
    async def complete(body: CompletionRequest, request: Request) -> Response:
        """Continue a text."""
        wanted = await anyio.to_thread.run_sync(
            serving.reader.completion, body, limiter=one_at_a_time
        )
        writer = CompletionFormat(
            f"cmpl-{uuid.uuid4().hex}", served.created, served.name, body.logprobs is not None
        )
        return await _respond(serving.engine, request, body, wanted, writer)

    @app.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={200: _EVENTS, **_FAILURES},
    )
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        wanted = await anyio.to_thread.run_sync(serving.reader.chat, body, limiter=one_at_a_time)
        asked = wanted[0].logprobs is not None
        writer = ChatFormat(f"chatcmpl-{uuid.uuid4().hex}", served.created, served.name, asked)
        return await _respond(serving.engine, request, body, wanted, writer)


def _add_reading(app: FastAPI, serving: Serving) -> None:
    served, engine = serving.served, serving.engine

    @app.get("/v1/models", response_model=Models)
    async def models() -> Models:
        """List the served model."""
        one = Model(id=served.name, created=served.created, max_model_len=served.max_model_len)
        return Models(data=[one])

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
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        events = _events(stream, choices, writer, prompt_tokens if with_usage else None)
        return StreamingResponse(events, media_type="text/event-stream")
    try:
        await _finish_or_hang_up(_collect(stream, choices), request)
    finally:
        stream.close()
    return JSONResponse(writer.whole(choices, _usage(choices, prompt_tokens)).model_dump())


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
    stream: RequestStream, choices: Sequence[Choice], writer: Format, prompt_tokens: int | None
) -> AsyncIterator[str]:
    """Server-sent events; prompt_tokens: given if usage was requested. Closes its sequences on
    every exit."""
    try:
        for index in range(len(choices)):
            if (opening := writer.opening(index)) is not None:
                yield _event(opening)
        async for piece in stream.pieces():
            choices[piece.index].add(piece.output)
            yield _event(writer.chunk(piece.index, piece.output))
        if prompt_tokens is not None:
            yield _event(writer.closing(_usage(choices, prompt_tokens)))
    except ApiError as error:
        yield f"data: {json.dumps({'error': error.problem.model_dump()})}\n\n"
    finally:
        stream.close()
    yield "data: [DONE]\n\n"


def _event(data: BaseModel) -> str:
    return f"data: {data.model_dump_json()}\n\n"


def _usage(choices: Sequence[Choice], prompt_tokens: int) -> Usage:
    generated = sum(choice.tokens for choice in choices)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=generated,
        total_tokens=prompt_tokens + generated,
        prompt_tokens_details=PromptDetails(cached_tokens=sum(one.cached for one in choices)),
    )
