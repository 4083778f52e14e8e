"""Request bodies, in OpenAI's names. Read strictly: an unknown field is refused by name.

A null asks for nothing, and neutral.py lists what else does; both are dropped before the rest is
read.

Limits of the served model (name, max_model_len, vocabulary) are checked by tokenization.py and
written into the OpenAPI document by openapi.py.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    Tag,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from engine.serve.openai import neutral

MOST_PROMPTS = 8  # of one request
MOST_CHOICES = 8  # of one prompt
LEAST_REPETITION = 0.01  # logits are divided by it
# Arguments of transformers' apply_chat_template that a client must not set.
RESERVED = (
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "documents",
    "max_length", "messages", "padding", "return_assistant_tokens_mask", "return_dict",
    "return_tensors", "self", "tokenize", "tokenizer_kwargs", "tools", "truncation",
)  # fmt: skip


class Strict(BaseModel):
    """A body that allows no unknown keys and no conversions. accepted: fields that may be sent at
    the values which ask for nothing."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    accepted: ClassVar[neutral.Table] = {}

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, sent: Any) -> Any:
        return neutral.drop_neutral(sent, cls.accepted)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The fields, those of `accepted`, and null for any other."""
        made = handler(core_schema)
        neutral.describe(handler.resolve_ref_schema(made), cls.accepted)
        return made


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
    Field(max_length=64, json_schema_extra={"propertyNames": {"not": {"enum": list(RESERVED)}}}),
]
StopWord = Annotated[str, Field(min_length=1, max_length=256)]
Stop = (
    Annotated[str, Field(max_length=256)]
    | Annotated[list[StopWord], Field(max_length=4, fail_fast=True)]
)
# -1, as llama.cpp's clients send it: as many as fit
Limit = Literal[-1] | Annotated[int, Field(ge=1), AS_WHOLE]
TokenId = Annotated[int, Field(ge=0), AS_WHOLE]
MOST_BIASES = 1024
TokenName = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


# What may be sent in fields of several types, said whole where none of them fits.
SEVERAL = {
    "prompt": f"text or token ids, one or a list of 1 to {MOST_PROMPTS}",
    "stop": "text, or a list of up to 4, each of 1 to 256 characters",
    "max_tokens": "a whole number above 0, or -1",
    "max_completion_tokens": "a whole number above 0, or -1",
    "logprobs": "a whole number from 0 to 5, or false",
}


class StreamOptions(Strict):
    """include_usage: the last chunk reports the numbers of tokens; continuous_usage_stats (vLLM):
    every chunk does; include_obfuscation: a hint, nothing is padded."""

    accepted = {"include_obfuscation": (neutral.BOOLEAN,)}
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class Generation(Strict):
    """Fields of both routes.

    top_k 0 or -1, min_p 0, repetition_penalty 1 and penalties of 0 are off. logit_bias: what is
    added to the logits of token ids. ignore_eos and min_tokens (vLLM): end tokens end no text, or
    none shorter than this. What is left out of temperature, top_p, top_k, min_p and
    repetition_penalty is as the checkpoint's generation_config.json has it, else 1 or off; the
    model is the one that is served.
    """

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1), AS_WHOLE] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = 0.0
    repetition_penalty: Annotated[float, Field(ge=LEAST_REPETITION, le=2)] | None = None
    logit_bias: Annotated[dict[TokenName, Bias], Field(max_length=MOST_BIASES)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES), AS_WHOLE] | None = 1
    seed: Annotated[int, AS_WHOLE] | None = None
    stop: Stop | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Limit | None = None
    min_tokens: Annotated[int, Field(ge=0), AS_WHOLE] | None = 0
    ignore_eos: bool | None = False


class CompletionRequest(Generation):
    """POST /v1/completions. prompt: text or token ids, one or several; best_of: 1, or as many as
    n."""

    accepted = neutral.COMPLETION
    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
    )
    logprobs: Literal[False] | Annotated[int, Field(ge=0, le=5), AS_WHOLE] | None = None
    best_of: Annotated[int, Field(ge=1, le=MOST_CHOICES), AS_WHOLE] | None = None

    @model_validator(mode="after")
    def _check_best_of(self) -> Self:
        if (self.best_of or 1) not in (1, self.n):
            neutral.refuse("best_of", "no answers are made to be thrown away; send n, or leave it")
        return self


class TextPart(Strict):
    """A part of a message."""

    accepted = neutral.PART
    type: Literal["text"]
    text: str


class RefusalPart(Strict):
    """A part of an earlier answer that is a refusal: text like any other."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        """What was said."""
        return self.refusal


def _kind_of_content(value: Any) -> str | None:
    if isinstance(value, str):
        return "<text>"
    return "<parts>" if isinstance(value, list) else None


def _kind_of_part(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"<{kind}>" if kind in ("text", "refusal") else None


def _kind_of_turn(value: Any) -> str | None:
    role = value.get("role") if isinstance(value, dict) else getattr(value, "role", None)
    if role == "assistant":
        return "<assistant>"
    return "<other>" if role in ("system", "developer", "user") else None


# Tags in <> are left out where an error names its place.
TextParts = Annotated[list[TextPart], Field(min_length=1, fail_fast=True)]
AnswerPart = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[RefusalPart, Tag("<refusal>")],
    Discriminator(
        _kind_of_part,
        custom_error_type="part",
        custom_error_message="a part must be of type text (in an answer also refusal)",
    ),
]
_EITHER = Discriminator(
    _kind_of_content,
    custom_error_type="content",
    custom_error_message="must be text, or a list of parts of type text",
)
Content = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[TextParts, Tag("<parts>")],
    _EITHER,
]
AnswerContent = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[AnswerPart], Field(fail_fast=True), Tag("<parts>")],
    _EITHER,
]


class Message(Strict):
    """One turn before an answer. `developer` is another name for `system`."""

    accepted = neutral.MESSAGE
    role: Literal["system", "developer", "user"]
    content: Content
    name: str | None = None


class AnswerTurn(Strict):
    """An earlier answer. content may be missing: an answer without text."""

    accepted = neutral.ASSISTANT
    role: Literal["assistant"]
    content: AnswerContent | None = ""
    name: str | None = None


Turn = Annotated[
    Annotated[Message, Tag("<other>")] | Annotated[AnswerTurn, Tag("<assistant>")],
    Discriminator(
        _kind_of_turn,
        custom_error_type="role",
        custom_error_message="role must be system, developer, user or assistant; this server "
        "runs no tools",
    ),
]


class ChatRequest(Generation):
    """POST /v1/chat/completions. chat_template_kwargs: variables of the model's own template,
    such as enable_thinking. max_completion_tokens takes precedence over max_tokens."""

    accepted = neutral.CHAT
    messages: Annotated[list[Turn], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Limit | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20), AS_WHOLE] | None = None
    chat_template_kwargs: TemplateVariables | None = None
