"""Request bodies, in OpenAI's names. Read strictly: an unknown field is refused by name.

Limits of the served model (name, max_model_len, vocabulary) are checked by tokenization.py and
written into the OpenAPI document by openapi.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

MOST_PROMPTS = 8  # of one request
MOST_CHOICES = 8  # of one prompt
# Arguments of transformers' apply_chat_template that a client must not set.
RESERVED = (
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "documents",
    "max_length", "messages", "padding", "return_assistant_tokens_mask", "return_dict",
    "return_tensors", "self", "tokenize", "tokenizer_kwargs", "tools", "truncation",
)  # fmt: skip


class Strict(BaseModel):
    """A body that allows no unknown keys and no conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _check_variables(value: dict[str, Any]) -> dict[str, Any]:
    taken = sorted(set(value) & set(RESERVED))
    if taken:
        raise ValueError(f"{', '.join(taken)} cannot be set by a client")
    return value


def _as_whole(value: Any) -> Any:
    """Accept 5.0 as an integer: JSON has only one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


AS_WHOLE = BeforeValidator(_as_whole)
Scalar = str | bool | int | float | None
TemplateVariables = Annotated[
    dict[str, Scalar],
    AfterValidator(_check_variables),
    Field(json_schema_extra={"propertyNames": {"not": {"enum": list(RESERVED)}}}),
]
StopWord = Annotated[str, Field(min_length=1, max_length=256)]
Stop = StopWord | Annotated[list[StopWord], Field(max_length=4)]
TokenId = Annotated[int, Field(ge=0), AS_WHOLE]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]


class StreamOptions(Strict):
    """include_usage: the last chunk reports the numbers of tokens."""

    include_usage: bool = False


class Generation(Strict):
    """Fields of both routes. Penalties are accepted only as 0; `user` is not used."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] | None = 1.0
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES), AS_WHOLE] | None = 1
    seed: Annotated[int, AS_WHOLE] | None = None
    stop: Stop | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1), AS_WHOLE] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = 0.0
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = 0.0
    user: str | None = None


class CompletionRequest(Generation):
    """POST /v1/completions. prompt: text or token ids, one or several."""

    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MOST_PROMPTS)]
    )
    logprobs: Annotated[int, Field(ge=0, le=5), AS_WHOLE] | None = None


class TextPart(Strict):
    """A part of a message; only text is supported."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One turn. `developer` is another name for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None


class ChatRequest(Generation):
    """POST /v1/chat/completions. chat_template_kwargs: variables of the model's own template,
    such as enable_thinking. max_completion_tokens takes precedence over max_tokens."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1), AS_WHOLE] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20), AS_WHOLE] | None = None
    chat_template_kwargs: TemplateVariables | None = None
