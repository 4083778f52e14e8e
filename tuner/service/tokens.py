"""Bearer tokens: `expertune_<id>_<secret>`, shown once; the store keeps the secret's SHA-256.

A secret of 32 random bytes needs no slow hash: it cannot be guessed from its hash.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

from tuner.errors import UsageError
from tuner.store.service import Tokens, TokenSnapshot

SECRET_BYTES = 32
_TOKEN = re.compile(r"expertune_([1-9][0-9]{0,17})_([A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_NOBODY = hashlib.sha256(b"").hexdigest()


def make_token(tokens: Tokens, name: str) -> str:
    """Makes a new token; it can be read only now. UsageError for an invalid name."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' is no name of a token: use up to 100 letters, digits, '.', '_' and '-'"
        )
    secret = secrets.token_urlsafe(SECRET_BYTES)
    kept = tokens.add(name, _digest(secret))
    return f"expertune_{kept.id}_{secret}"


def accept_token(tokens: Tokens, text: str) -> TokenSnapshot | None:
    """The token's snapshot; None for one that was never made or was revoked.

    Secrets are compared in constant time, with a dummy hash if there is no such id.
    """
    match = _TOKEN.fullmatch(text)
    if match is None:
        return None
    found = tokens.find(int(match.group(1)))
    same = hmac.compare_digest(_digest(match.group(2)), found.hash if found else _NOBODY)
    return found if found is not None and same and found.revoked is None else None


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
