"""What clients may send, in OpenAI's names. Read strictly: what is not here is refused by name.

What depends on the served model (its name, its room, its vocabulary) is checked by
tokenization.py and written into the OpenAPI document by openapi.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

MOST_PROMPTS = 8  # of one request
MOST_CHOICES = 8  # of one prompt
# Arguments of transformers' own that a template must not get from a client.
RESERVED = (
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "documents",
    "max_length", "messages", "padding", "return_assistant_tokens_mask", "return_dict",
    "return_tensors", "self", "tokenize", "tokenizer_kwargs", "tools", "truncation",
)  # fmt: skip


class Strict(BaseModel):
    """No unknown keys, no conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _check_variables(value: dict[str, Any]) -> dict[str, Any]:
    taken = sorted(set(value) & set(RESERVED))
    if taken:
        raise ValueError(f"{', '.join(taken)} cannot be set by a client")
    return value


def _as_whole(value: Any) -> Any:
    """JSON knows one kind of number: 5.0 is whole."""
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
    """include_usage: a last chunk says how many tokens there were."""

    include_usage: bool = False


class Generation(Strict):
    """What both routes take. Penalties are known, and refused unless 0; `user` is not used."""

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
    """A part of a message; only text is known."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One turn. `developer` is another name of `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None


class ChatRequest(Generation):
    """POST /v1/chat/completions. chat_template_kwargs: variables of the model's own template, such
    as enable_thinking. max_completion_tokens goes before max_tokens."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1), AS_WHOLE] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20), AS_WHOLE] | None = None
    chat_template_kwargs: TemplateVariables | None = None
