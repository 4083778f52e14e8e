"""Formats generated text as OpenAI answers: whole ones, and the chunks of a stream.

There is one Format per API; the routes know only this Protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import BaseModel

from engine.serve.batching.sequence import Finish, StepOutput
from engine.serve.batching.token_texts import Likely, TokenLogprob
from engine.serve.openai.responses import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprob,
    ChatLogprobs,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Delta,
    TopLogprob,
    Usage,
)


@dataclass
class Choice:
    """One sequence, accumulated. logprobs: None if not requested."""

    text: str = ""
    tokens: int = 0
    cached: int = 0
    finish: Finish | None = None
    logprobs: list[TokenLogprob] | None = None

    def add(self, output: StepOutput) -> None:
        """Add the next output."""
        self.text += output.text
        self.tokens = output.tokens
        self.cached = output.cached
        self.finish = output.finish
        if self.logprobs is not None:
            self.logprobs.extend(output.logprobs)


class Format(Protocol):
    """Writes the answers of one API."""

    def opening(self, index: int, usage: Usage | None) -> BaseModel | None:
        """The chunk that begins a choice, None if there is none. usage: if every chunk has it."""

    def chunk(self, index: int, output: StepOutput, usage: Usage | None) -> BaseModel:
        """A stream chunk with one step's output. usage: if every chunk has it."""

    def closing(self, usage: Usage) -> BaseModel:
        """The final chunk, with the requested usage."""

    def whole(self, choices: Sequence[Choice], usage: Usage) -> BaseModel:
        """The complete answer."""


@dataclass
class CompletionFormat:
    """/v1/completions. with_logprobs: whether log probabilities were requested."""

    id: str
    created: int
    model: str
    with_logprobs: bool
    _offsets: dict[int, int] = field(default_factory=dict)

    def opening(self, index: int, usage: Usage | None) -> BaseModel | None:
        """None: a completion begins with its first piece."""
        return None

    def chunk(self, index: int, output: StepOutput, usage: Usage | None) -> BaseModel:
        """A chunk of text."""
        offset = self._offsets.get(index, 0)
        self._offsets[index] = offset + len(output.text)
        found = _side_by_side(output.logprobs, offset) if self.with_logprobs else None
        choice = CompletionChoice(
            index=index, text=output.text, logprobs=found, finish_reason=output.finish
        )
        return self._completion([choice], usage)

    def closing(self, usage: Usage) -> BaseModel:
        """A chunk without choices, with usage."""
        return self._completion([], usage)

    def whole(self, choices: Sequence[Choice], usage: Usage) -> BaseModel:
        """The complete answer with all texts."""
        made = [
            CompletionChoice(
                index=index,
                text=one.text,
                logprobs=None if one.logprobs is None else _side_by_side(one.logprobs, 0),
                finish_reason=one.finish,
            )
            for index, one in enumerate(choices)
        ]
        return self._completion(made, usage)

    def _completion(self, choices: list[CompletionChoice], usage: Usage | None = None) -> BaseModel:
        return Completion(
            id=self.id, created=self.created, model=self.model, choices=choices, usage=usage
        )


@dataclass(frozen=True)
class ChatFormat:
    """/v1/chat/completions. with_logprobs: whether log probabilities were requested."""

    id: str
    created: int
    model: str
    with_logprobs: bool

    def opening(self, index: int, usage: Usage | None) -> BaseModel | None:
        """A chunk with the role."""
        choice = ChunkChoice(index=index, delta=Delta(role="assistant", content=""))
        return self._chunk([choice], usage)

    def chunk(self, index: int, output: StepOutput, usage: Usage | None) -> BaseModel:
        """A chunk of the message."""
        found = _with_bytes(output.logprobs) if self.with_logprobs else None
        delta = Delta(content=output.text) if output.text else Delta()
        choice = ChunkChoice(index=index, delta=delta, logprobs=found, finish_reason=output.finish)
        return self._chunk([choice], usage)

    def closing(self, usage: Usage) -> BaseModel:
        """A chunk without choices, with usage."""
        return self._chunk([], usage)

    def whole(self, choices: Sequence[Choice], usage: Usage) -> BaseModel:
        """The complete answer with all messages."""
        made = []
        for index, one in enumerate(choices):
            assert one.finish is not None, "an answer is written when all has come"
            made.append(
                ChatChoice(
                    index=index,
                    message=AnswerMessage(content=one.text),
                    logprobs=None if one.logprobs is None else _with_bytes(one.logprobs),
                    finish_reason=one.finish,
                )
            )
        return ChatCompletion(
            id=self.id, created=self.created, model=self.model, choices=made, usage=usage
        )

    def _chunk(self, choices: list[ChunkChoice], usage: Usage | None = None) -> BaseModel:
        return ChatChunk(
            id=self.id, created=self.created, model=self.model, choices=choices, usage=usage
        )


def _side_by_side(logprobs: Sequence[TokenLogprob], offset: int) -> CompletionLogprobs:
    offsets = []
    for one in logprobs:
        offsets.append(offset)
        offset += len(one.chosen.text)
    return CompletionLogprobs(
        tokens=[one.chosen.text for one in logprobs],
        token_logprobs=[one.chosen.logprob for one in logprobs],
        top_logprobs=[_by_text(one.top) for one in logprobs],
        text_offset=offsets,
    )


def _by_text(top: Sequence[Likely]) -> dict[str, float]:
    """Log probabilities by text; of tokens with equal texts (parts of characters) the likeliest."""
    return {one.text: one.logprob for one in reversed(top)}


def _with_bytes(logprobs: Sequence[TokenLogprob]) -> ChatLogprobs:
    return ChatLogprobs(
        content=[
            ChatLogprob(
                **_token(one.chosen).model_dump(), top_logprobs=[_token(each) for each in one.top]
            )
            for one in logprobs
        ]
    )


def _token(likely: Likely) -> TopLogprob:
    raw = None if likely.bytes is None else list(likely.bytes)
    return TopLogprob(token=likely.text, logprob=likely.logprob, bytes=raw)
