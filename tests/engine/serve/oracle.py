"""What a server should answer: greedy questions, asked one after the other, and how sure it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx

NEAR_TIE = 0.02
"""Two tokens whose log probabilities are this close: rounding may choose either."""
Verdict = Literal["same", "near tie", "wrong"]


@dataclass(frozen=True)
class Question:
    """A greedy request. Its answer has exactly max_tokens tokens."""

    prompt: str
    max_tokens: int
    chat: bool

    @property
    def route(self) -> str:
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    def body(self, logprobs: bool = False, **more: Any) -> dict[str, Any]:
        """The request. logprobs: with the two likeliest tokens of each place."""
        if self.chat:
            asked: dict[str, Any] = {"messages": [{"role": "user", "content": self.prompt}]}
            asked |= {"logprobs": True, "top_logprobs": 2} if logprobs else {}
        else:
            asked = {"prompt": self.prompt, **({"logprobs": 2} if logprobs else {})}
        fixed = {"temperature": 0, "ignore_eos": True, "max_tokens": self.max_tokens}
        return {"model": "tiny", **fixed, **asked, **more}


@dataclass(frozen=True)
class Answer:
    """The right text. tokens: its pieces; margins: by how much the log probability of each token
    exceeds that of the next likeliest."""

    text: str
    tokens: tuple[str, ...]
    margins: tuple[float, ...]

    def verdict(self, text: str, tokens: Sequence[str] | None = None) -> Verdict:
        """Whether this text, of these tokens, is the same up to the first near-tie."""
        if text == self.text and tokens in (None, self.tokens):
            return "same"
        if tokens is not None:
            differing = [_alike(self.tokens, tokens)]
        else:  # the piece that differs, or the one before it, which may have been cut elsewhere
            place = _alike(self.text, text)
            differing = [n for n in range(len(self.tokens)) if self._touches(n, place)]
        margins = [self.margins[n] for n in differing if n < len(self.margins)]
        return "near tie" if min(margins, default=1.0) < NEAR_TIE else "wrong"

    def _touches(self, number: int, place: int) -> bool:
        begin = len("".join(self.tokens[:number]))
        return begin <= place <= begin + len(self.tokens[number])


def ask(http: httpx.Client, question: Question) -> Answer:
    """The answer of a server that does nothing else."""
    answer = http.post(question.route, json=question.body(logprobs=True))
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    tokens, ranked = tokens_of(choice), likeliest(choice)
    text = choice["message"]["content"] if question.chat else choice["text"]
    assert len(tokens) == question.max_tokens
    assert "".join(tokens) == text
    return Answer(text, tokens, tuple(best - other for best, other in ranked))


def tokens_of(choice: dict[str, Any]) -> tuple[str, ...]:
    """The pieces of a choice, or of a chunk of it, that was asked for with log probabilities."""
    found = choice.get("logprobs") or {}
    if "content" in found:
        return tuple(one["token"] for one in found["content"])
    return tuple(found.get("tokens", ()))


def likeliest(choice: dict[str, Any]) -> list[tuple[float, float]]:
    """The two highest log probabilities of each place; a tie of tokens with one text is none."""
    found = choice["logprobs"]
    if "content" in found:
        rows = [[top["logprob"] for top in one["top_logprobs"]] for one in found["content"]]
    else:
        rows = [list(one.values()) for one in found["top_logprobs"]]
    return [(max(row), sorted(row)[-2] if len(row) > 1 else -1e9) for row in rows]


def _alike(one: Sequence[str], other: Sequence[str]) -> int:
    """How many elements both begin with."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
