"""Response bodies, in OpenAI's names."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer

Finish = Literal["stop", "length"]


class PromptDetails(BaseModel):
    """cached_tokens: prompt tokens reused from the prefix cache (serve.prefix_cache_tokens)."""

    cached_tokens: int = 0


class Usage(BaseModel):
    """Token counts of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails = PromptDetails()


class CompletionLogprobs(BaseModel):
    """Parallel lists: each token's text, log probability, likeliest others and offset in the
    text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One text; in a stream a piece of it, with finish_reason None until the last."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Finish | None = None


class Completion(BaseModel):
    """The answer of /v1/completions; a stream sends the same object with a piece of text in
    each."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class TopLogprob(BaseModel):
    """A token's text, empty if the token is only a part of a character. bytes: its own, None if
    unknown; those of all tokens together are the answer's text in UTF-8."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(TopLogprob):
    """A chosen token and the likeliest tokens at its position."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log probabilities of all tokens of a choice."""

    content: list[ChatLogprob]


class AnswerMessage(BaseModel):
    """The model's message."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish


class ChatCompletion(BaseModel):
    """The answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(BaseModel):
    """A piece of an answer; the first one carries the role."""

    role: Literal["assistant"] | None = None
    content: str | None = None

    @model_serializer(mode="wrap")
    def _without_nothing(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit null fields: clients concatenate every field that is present."""
        return {key: value for key, value in write(self).items() if value is not None}


class ChunkChoice(BaseModel):
    """A piece of one choice."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish | None = None


class ChatChunk(BaseModel):
    """One event of a chat stream; the last, if usage was requested, has no choices."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class Model(BaseModel):
    """The served model. max_model_len: maximum tokens of a prompt and its answer together."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "expertune"
    max_model_len: int


class Models(BaseModel):
    """The answer of /v1/models."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """The answer of /health and /healthz."""

    status: Literal["ok", "failed"]
    running: int
    waiting: int


class Version(BaseModel):
    """The answer of /version."""

    version: str


class Problem(BaseModel):
    """An error: message for people, param and code for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """OpenAI's error body."""

    error: Problem
