"""ASGI layers before every request: rate limit, body size, host name, origin, safe headers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.inputs.host_name import names_this_machine
from engine.inputs.origin import is_foreign
from tuner.service.problems import problem
from tuner.service.rate import RateLimit, client_of

Layer = Callable[[ASGIApp], ASGIApp]

SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
NO_CONTENT = "default-src 'none'; frame-ancestors 'none'"
DOCS = ("/docs", "/docs/oauth2-redirect")  # load scripts


class BeforeHttp:
    """Applies layers to HTTP requests, the last one outermost; other ASGI messages pass
    unchanged."""

    def __init__(self, app: ASGIApp, layers: Sequence[Layer]) -> None:
        self.app = app
        self.http = app
        for layer in layers:
            self.http = layer(self.http)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes HTTP requests through the layers, other messages directly."""
        app = self.http if scope["type"] == "http" else self.app
        await app(scope, receive, send)


@dataclass(frozen=True)
class SafeHeaders:
    """Tells browsers to guess, cache, frame and load nothing; the response's own headers win."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on and adds headers to its response."""

        async def send_safe(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SAFE_HEADERS.items():
                    headers.setdefault(name, value)
                if scope["path"] not in DOCS:
                    headers.setdefault("Content-Security-Policy", NO_CONTENT)
            await send(message)

        await self.app(scope, receive, send_safe)


@dataclass(frozen=True)
class Rate:
    """Answers 429 to a client that exceeds its rate limit."""

    app: ASGIApp
    limit: RateLimit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it."""
        client = scope.get("client")
        wait_s = self.limit.wait_s(client_of(client[0] if client else ""))
        if wait_s <= 0:
            await self.app(scope, receive, send)
            return
        sentence = f"more than {self.limit.per_s:g} requests a second: try again later"
        headers = {"Retry-After": str(math.ceil(wait_s))}
        await problem(429, sentence, headers)(scope, receive, send)


@dataclass(frozen=True)
class LocalHost:
    """Answers 400 if a loopback service is addressed by a non-loopback host name.

    Without tokens, a web page could otherwise read responses by resolving its own name to this
    machine (DNS rebinding).
    """

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it."""
        if names_this_machine(Headers(scope=scope).get("host", "")):
            await self.app(scope, receive, send)
            return
        sentence = (
            "this service answers to localhost, 127.0.0.1 and [::1] only; its operator can let it "
            "answer to other names with --require-token"
        )
        await problem(400, sentence)(scope, receive, send)


@dataclass(frozen=True)
class OwnPages:
    """Answers 403 to what a page of another origin made a browser send to a service without
    tokens."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it."""
        if not is_foreign(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        sentence = (
            "a page of another origin sent this: its operator can let programs of other origins "
            "ask with a token (--require-token)"
        )
        await problem(403, sentence)(scope, receive, send)


@dataclass(frozen=True)
class BodySize:
    """Answers 413 to a body of more than max_bytes, announced or not."""

    app: ASGIApp
    max_bytes: int

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, counting its body."""
        sentence = f"the request is larger than {self.max_bytes} bytes"
        announced = Headers(scope=scope).get("content-length", "0")
        if not announced.isdecimal() or int(announced) > self.max_bytes:
            await problem(413, sentence)(scope, receive, send)
            return
        seen_bytes = 0

        async def receive_counted() -> Message:
            nonlocal seen_bytes
            message = await receive()
            seen_bytes += len(message.get("body", b""))
            if seen_bytes > self.max_bytes:
                raise HTTPException(413, sentence)
            return message

        await self.app(scope, receive_counted, send)
