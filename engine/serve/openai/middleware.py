"""ASGI middleware: counts requests by route and code, and refuses bodies beyond a size."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.serve.batching.metrics import Meters

MOST_BODY_BYTES = 8 << 20


class CountedRequests:
    """ASGI wrapper that counts requests and limits their bodies. meters: the counters."""

    def __init__(self, app: ASGIApp, meters: Meters) -> None:
        self._app = app
        self._meters = meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on; a body beyond MOST_BODY_BYTES is answered with 413."""
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
            if received > MOST_BODY_BYTES:
                raise HTTPException(413, f"the body is larger than {MOST_BODY_BYTES} bytes")
            return message

        await self._app(scope, bounded, counted)


def _route_of(scope: Scope) -> str:
    """The route's path, never a client's own path: labels must stay few."""
    return str(getattr(scope.get("route"), "path", "other"))
