"""Converts requests to sequences: token ids by the model's tokenizer and template, and limits.

Raises ApiError for what this model cannot take.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from engine.errors import ModelError
from engine.model.chat_template import TemplateFailedError, TemplateRenderer
from engine.model.tokenizer import encode_enough
from engine.run.generate import SamplingDefaults
from engine.run.penalties import PenaltyOptions
from engine.run.sampling import SamplingOptions
from engine.serve.batching.sequence import SequenceRequest
from engine.serve.openai.errors import ApiError
from engine.serve.openai.requests import (
    AnswerTurn,
    ChatRequest,
    CompletionRequest,
    Generation,
    Message,
)

ALL = -1  # as many tokens as fit
COMPLETION_TOKENS = 16  # default of a completion; a chat defaults to the whole capacity
_LEAST_TOP_P = 1e-6  # 0 would leave no token at all


@dataclass(frozen=True)
class ServedModel:
    """The served model.

    name: as clients call it; max_model_len: kv.max_tokens, of a prompt and its answer together;
    vocabulary: token ids are below it; created: seconds since 1970.
    """

    name: str
    max_model_len: int
    vocabulary: int
    created: int


class PromptReader:
    """Converts requests to sequences. tokenizer: not used by any other thread; defaults: of
    requests that name no sampling values."""

    def __init__(
        self, served: ServedModel, tokenizer: Any, defaults: SamplingDefaults | None = None
    ) -> None:
        self._served = served
        self._tokenizer = tokenizer
        self._defaults = defaults or SamplingDefaults()
        self._renderer = TemplateRenderer()

    def completion(self, request: CompletionRequest) -> list[SequenceRequest]:
        """One sequence for each prompt and choice, a prompt's choices next to each other."""
        check_model(request.model, self._served)
        self._check_length("max_tokens", request.max_tokens)
        prompts = [self._encode(prompt) for prompt in _prompts_of(request)]
        limit = self._limit(request.max_tokens or COMPLETION_TOKENS)
        logprobs = None if request.logprobs is False else request.logprobs
        return self._spread(request, prompts, limit, logprobs)

    def chat(self, request: ChatRequest) -> list[SequenceRequest]:
        """One sequence for each choice."""
        check_model(request.model, self._served)
        self._check_length("max_tokens", request.max_tokens)
        self._check_length("max_completion_tokens", request.max_completion_tokens)
        prompt = self._render(request)
        limit = self._limit(request.max_completion_tokens or request.max_tokens or ALL)
        wants = request.logprobs or request.top_logprobs
        logprobs = (request.top_logprobs or 0) if wants else None
        return self._spread(request, [prompt], limit, logprobs)

    def _spread(
        self, request: Generation, prompts: Sequence[list[int]], limit: int, logprobs: int | None
    ) -> list[SequenceRequest]:
        capacity, longest = self._served.max_model_len, max(map(len, prompts))
        if longest >= capacity:
            raise _too_long(f"the prompt has at least {longest} tokens", capacity, "prompt")
        self._check_ids("logit_bias", [int(token) for token in request.logit_bias or ()])
        self._check_least(request, limit, capacity - longest)
        sampling = _sampling_of(request, self._defaults)
        words = [request.stop] if isinstance(request.stop, str) else request.stop or []
        stop = tuple(word for word in words if word)
        made = [
            SequenceRequest(
                tuple(prompt),
                min(limit, capacity - len(prompt)),
                sampling,
                stop,
                logprobs,
                request.seed is not None,
                request.min_tokens or 0,
                bool(request.ignore_eos),
            )
            for prompt in prompts
        ]
        return [
            replace(one, sampling=replace(sampling, seed=_seed(sampling.seed, choice)))
            for one in made
            for choice in range(request.n or 1)
        ]

    def _limit(self, tokens: int) -> int:
        """The most tokens of an answer."""
        return self._served.max_model_len if tokens == ALL else tokens

    def _check_length(self, name: str, tokens: int | None) -> None:
        if tokens is not None and tokens > self._served.max_model_len:
            raise _too_long(f"{name} is {tokens}", self._served.max_model_len, name)

    def _check_ids(self, name: str, ids: Sequence[int]) -> None:
        if max(ids, default=0) >= self._served.vocabulary:
            says = f"a token id of this model lies below {self._served.vocabulary}"
            raise ApiError(400, says, param=name)

    def _check_least(self, request: Generation, limit: int, left: int) -> None:
        """limit: of the answer; left: what the longest prompt leaves of the capacity."""
        least = request.min_tokens or 0
        if least > limit:
            raise ApiError(
                400,
                f"min_tokens is {least}, but the answer ends at max_tokens = {limit}: ask for "
                "less, or give a larger max_tokens",
                param="min_tokens",
            )
        if least > left:
            what = f"min_tokens is {least}, and the prompt leaves {left}"
            raise _too_long(what, self._served.max_model_len, "min_tokens")

    def _encode(self, prompt: str | list[int]) -> list[int]:
        """Token ids of a text; for an empty one the token that begins a text."""
        if isinstance(prompt, list):
            self._check_ids("prompt", prompt)
            return prompt
        ids = self._ids("prompt", prompt)
        begin = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        ids = ids or [token for token in begin if token is not None][:1]
        if not ids:
            raise ApiError(400, "the prompt is empty: write at least one word", param="prompt")
        self._check_ids("prompt", ids)
        return ids

    def _ids(self, param: str, text: str, **options: Any) -> list[int]:
        try:
            return encode_enough(self._tokenizer, text, self._served.max_model_len, **options)
        except ModelError as error:
            raise ApiError(400, str(error), param=param) from None

    def _render(self, request: ChatRequest) -> list[int]:
        """Token ids of the conversation in the model's own template."""
        if not getattr(self._tokenizer, "chat_template", None):
            raise ApiError(
                400, "this model has no chat template: use /v1/completions", param="messages"
            )
        try:
            text = self._renderer.render(
                self._tokenizer,
                [_plain(message) for message in request.messages],
                add_generation_prompt=True,
                **(request.chat_template_kwargs or {}),
            )
        except TemplateFailedError as error:
            raise ApiError(
                400, f"the model's chat template refuses this: {error}", param="messages"
            ) from None
        ids = self._ids("messages", text, add_special_tokens=False)
        if not ids:
            raise ApiError(400, "the conversation is empty: write a message", param="messages")
        self._check_ids("messages", ids)
        return ids


def check_model(name: str | None, served: ServedModel) -> None:
    """Raise ApiError 404 unless this is the served model's name, or none."""
    if name is not None and name != served.name:
        raise ApiError(
            404,
            f"this server has no such model; it serves '{served.name}'",
            param="model",
            code="model_not_found",
        )


def _prompts_of(request: CompletionRequest) -> list[str | list[int]]:
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [prompt]
    return list(cast(list[str | list[int]], prompt))


def _plain(message: Message | AnswerTurn) -> dict[str, str]:
    """A message as templates expect it: system for developer, parts joined, text for null."""
    content = message.content or ""
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    role = "system" if message.role == "developer" else message.role
    named = {} if message.name is None else {"name": message.name}
    return {"role": role, "content": text, **named}


def _sampling_of(request: Generation, defaults: SamplingDefaults) -> SamplingOptions:
    """A null is the default, and a value that turns something off is off."""
    bias = tuple((int(token), value) for token, value in (request.logit_bias or {}).items())
    seed = secrets.randbits(32) if request.seed is None else request.seed
    own = defaults.options(seed, temperature=1.0, top_p=1.0)
    repetition = request.repetition_penalty
    return SamplingOptions(
        temperature=own.temperature if request.temperature is None else request.temperature,
        top_p=own.top_p if request.top_p is None else max(_LEAST_TOP_P, request.top_p),
        seed=seed,
        top_k=own.top_k if request.top_k is None else max(0, request.top_k),
        min_p=own.min_p if request.min_p is None else request.min_p,
        penalties=PenaltyOptions(
            own.penalties.repetition if repetition is None else repetition,
            request.frequency_penalty or 0.0,
            request.presence_penalty or 0.0,
            bias,
        ),
    )


def _seed(seed: int, choice: int) -> int:
    """The seed of one of several choices; any integer is a seed, torch takes 64 bits."""
    return (seed + choice) % 2**63


def _too_long(what: str, capacity: int, param: str) -> ApiError:
    return ApiError(
        400,
        f"{what}; this server has a capacity of {capacity} tokens of prompt and answer together "
        "(kv.max_tokens): ask for less, or deploy a config with more capacity",
        param=param,
        code="context_length_exceeded",
    )
