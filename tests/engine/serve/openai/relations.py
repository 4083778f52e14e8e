"""Hooks of schemathesis: relations between two fields, which a JSON schema cannot state."""

from __future__ import annotations

from typing import Any

import schemathesis

DEFAULT_TOKENS = 16  # of a completion


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Leave out min_tokens above max_tokens and best_of other than n, which get 400."""
    if not isinstance(body, dict):
        return body
    least, most = body.get("min_tokens"), body.get("max_completion_tokens")
    most = most or body.get("max_tokens") or DEFAULT_TOKENS
    if _numbers(least, most) and least > most:
        body = {key: value for key, value in body.items() if key != "min_tokens"}
    if _numbers(body.get("best_of")) and body["best_of"] not in (1, body.get("n", 1)):
        body = {key: value for key, value in body.items() if key != "best_of"}
    return body


def _numbers(*values: Any) -> bool:
    return all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)
