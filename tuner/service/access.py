"""Access control: bearer tokens, if the service requires them."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from tuner.service.service import Service, current
from tuner.service.tokens import accept_token

BEARER = HTTPBearer(auto_error=False, description="A token from `tune service token add NAME`.")


def require_token(
    service: Annotated[Service, Depends(current)],
    given: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)],
) -> None:
    """Raises 401 for a request without a currently valid token."""
    if given is None or accept_token(service.tokens, given.credentials) is None:
        raise HTTPException(
            401,
            "a valid token is needed: send `Authorization: Bearer TOKEN`; the operator makes one "
            "with `tune service token add NAME`",
            {"WWW-Authenticate": "Bearer"},
        )
