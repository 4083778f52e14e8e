"""Hooks of schemathesis: relations between two fields, and names of tokens, which a JSON schema
cannot state."""

from __future__ import annotations

from typing import Any

import schemathesis

from engine.serve.openai.requests import LEAST_REPETITION, MOST_CHOICES

DEFAULT_TOKENS = 16  # of a completion
ROOM, VOCABULARY = 4096, 256  # of the server under test, or less


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Leave out min_tokens above max_tokens, best_of other than n and tokens that the model lacks,
    which get 400; and ignore_eos and a reward for repetitions, with which a text of thousands of
    tokens takes time. A value that is wrong by itself stays."""
    body = case.body
    if not isinstance(body, dict):
        return
    dropped = {"ignore_eos"} if body.get("ignore_eos") is True else set()
    penalty = body.get("repetition_penalty")
    if isinstance(penalty, int | float) and LEAST_REPETITION <= penalty < 1:
        dropped.add("repetition_penalty")
    most = body.get("max_completion_tokens") or body.get("max_tokens") or DEFAULT_TOKENS
    least, best_of = body.get("min_tokens"), body.get("best_of")
    if _whole(least, ROOM) and not (_whole(most, ROOM) and least <= min(most, DEFAULT_TOKENS)):
        dropped.add("min_tokens")
    if _whole(best_of, MOST_CHOICES) and best_of not in (1, body.get("n")):
        dropped.add("best_of")
    bias = body.get("logit_bias")
    if isinstance(bias, dict) and any(_beyond(token) for token in bias):
        dropped.add("logit_bias")
    case.body = {key: value for key, value in body.items() if key not in dropped}


def _beyond(token: str) -> bool:
    """Whether it is a name that the schema allows, of no token of the model."""
    return token.isascii() and token.isdigit() and VOCABULARY <= int(token) < 10**9


def _whole(value: Any, most: int) -> bool:
    """Whether it is a whole number that the schema allows."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and value == int(value) and 0 <= value <= most
