"""Who may use the server: requests to this machine's own names, or with the API key."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.files import short_digest
from engine.inputs.host_name import names_this_machine
from engine.serve.openai.errors import ApiError, error_response

KEY_DIGITS = 64  # all of SHA-256
OPEN_PATHS = ("/health", "/healthz")  # what monitors ask without a key


class Access:
    """ASGI wrapper that refuses who may not use the server.

    key_digest: SHA-256 of the API key that every request but OPEN_PATHS has to bring, "": none.
    Without one, local_only refuses requests that name another host, as pages elsewhere make
    browsers send them.
    """

    def __init__(self, app: ASGIApp, *, local_only: bool, key_digest: str) -> None:
        self._app = app
        self._local_only = local_only
        self._key_digest = key_digest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, or answer 401 or 400."""
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
        return None
