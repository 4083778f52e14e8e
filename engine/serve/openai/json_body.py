"""Reads the body of a POST: one JSON object in UTF-8, whatever its Content-Type says.

`curl -d` sends application/x-www-form-urlencoded, and some clients send no type at all. What could
mean two things (a key twice, NaN, half of a surrogate pair) is refused with 400.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute

from engine.serve.openai.errors import ApiError

_JSON = (b"content-type", b"application/json")


class JsonRoute(APIRoute):
    """A route whose body is read by `parse_body`."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """The handler, behind the parser."""
        handle = super().get_route_handler()

        async def parsed(request: Request) -> Response:
            body = _JsonRequest(request)
            await body.json()
            return await handle(body)

        return parsed


class _JsonRequest(Request):
    """The request as FastAPI sees it: of type JSON, and parsed."""

    def __init__(self, sent: Request) -> None:
        headers = [one for one in sent.scope["headers"] if one[0] != _JSON[0]]
        super().__init__({**sent.scope, "headers": [*headers, _JSON]}, sent.receive)
        self._said = sent.headers.get("content-type", "")

    async def json(self) -> Any:
        """The parsed body; raises ApiError 400 if there is none."""
        if not hasattr(self, "_json"):
            if self.headers.get("content-encoding", "identity") != "identity":
                raise ApiError(400, "this server reads no Content-Encoding: send the body as it is")
            self._json = parse_body(await self.body(), self._said)
        return self._json


def parse_body(body: bytes, content_type: str = "application/json") -> Any:
    """The JSON value of a body. Raises ApiError 400, never naming what was sent but a key."""
    try:
        text = body.decode("utf-8-sig")  # editors on Windows put a byte order mark in front
    except UnicodeDecodeError:
        raise ApiError(400, f"the body is not UTF-8{_hint(content_type)}") from None
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
        if "\\ud" in text.lower():
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ApiError(400, "the body has half of a surrogate pair, which is no text") from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply") from None
    except ValueError:  # also of integers with thousands of digits
        raise ApiError(400, f"the body is not valid JSON{_hint(content_type)}") from None
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys all differ."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        shown = f"'{twice}' stands" if twice.isidentifier() and len(twice) < 64 else "a key stands"
        raise ApiError(400, f"{shown} twice in one object of the body")
    return made


def _no_number(name: str) -> NoReturn:
    raise ApiError(400, f"{name} is no number in JSON")


def _hint(content_type: str) -> str:
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        return ""
    return " (its Content-Type says something else): send JSON, with Content-Type: application/json"
