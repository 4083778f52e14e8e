"""ASGI middleware: counts requests, bounds their bodies, answers HEAD, and lets browsers in."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.serve.batching.metrics import Meters

MOST_BODY_BYTES = 8 << 20
_LEAST_BODY_BYTES = 64 << 10
_BYTES_PER_TOKEN = 128  # of 8 prompts that fill the context, each token of up to 16 characters


def body_limit(max_model_len: int) -> int:
    """The bytes of a body that can hold what the model takes: what is longer is not even parsed."""
    return min(MOST_BODY_BYTES, _LEAST_BODY_BYTES + max_model_len * _BYTES_PER_TOKEN)


class CountedRequests:
    """ASGI wrapper that counts requests in `meters`, and limits their bodies to most_bytes."""

    def __init__(self, app: ASGIApp, meters: Meters, most_bytes: int) -> None:
        self._app = app
        self._meters = meters
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on; a body beyond most_bytes is answered with 413."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received = 0

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._meters.request(_route_of(scope), message["status"])
            await send(message)

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._most_bytes:
                raise HTTPException(413, f"the body is larger than {self._most_bytes} bytes")
            return message

        await self._app(scope, bounded, counted)


class HeadLikeGet:
    """ASGI wrapper that answers HEAD as GET, without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def bodiless(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._app({**scope, "method": "GET"}, receive, bodiless)


def let_browsers_in(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """The application, whose answers and errors pages of these origins may read ("*": of any); the
    same application if there are none."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=("*",),  # each that a page asks for, Authorization too
        expose_headers=("Retry-After",),
    )


def _route_of(scope: Scope) -> str:
    """The route's path, never a client's own path: labels must stay few."""
    return str(getattr(scope.get("route"), "path", "other"))
