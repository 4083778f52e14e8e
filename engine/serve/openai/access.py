"""Who may use the server: requests to this machine's own names, or with the API key."""

from __future__ import annotations

import hmac
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.files import short_digest
from engine.inputs.host_name import names_this_machine
from engine.inputs.origin import is_foreign
from engine.serve.openai.errors import ApiError, error_response

KEY_DIGITS = 64  # all of SHA-256
OPEN_PATHS = ("/health", "/healthz")  # what monitors ask without a key


class Access:
    """ASGI wrapper that refuses who may not use the server.

    key_digest: SHA-256 of the API key that every request but OPEN_PATHS has to bring, "": none.
    Without one, requests of pages whose origin is not in `origins` are refused, and with local_only
    those that name another host, as pages elsewhere make browsers send them.
    """

    def __init__(
        self, app: ASGIApp, *, local_only: bool, key_digest: str, origins: Collection[str] = ()
    ) -> None:
        self._app = app
        self._local_only = local_only
        self._key_digest = key_digest
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, or answer 401, 400 or 403."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        answer = self._app if refusal is None else error_response(refusal)
        await answer(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        if self._key_digest:
            kind, _, key = headers.get("authorization", "").partition(" ")
            same = hmac.compare_digest(short_digest(key.strip(), KEY_DIGITS), self._key_digest)
            if scope["path"] in OPEN_PATHS or (kind.lower() == "bearer" and same):
                return None
            says = "this server needs its API key: send `Authorization: Bearer KEY`"
            return ApiError(401, says, code="invalid_api_key")
        if self._local_only and not names_this_machine(headers.get("host", "")):
            return ApiError(
                400,
                "this server answers to localhost, 127.0.0.1 and [::1] only; its operator can let "
                "it answer to other names with an API key (--api-key-file)",
            )
        if is_foreign(headers, self._origins):
            return ApiError(
                403,
                "a page of another origin sent this: its operator can let pages of that origin in "
                "with --cors-origin",
                code="foreign_origin",
            )
        return None
