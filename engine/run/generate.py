"""Generates text on a configured engine, for `tune run` and deployments."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine.errors import InfeasibleError, UsageError
from engine.model.chat_template import TemplateFailedError, TemplateRenderer
from engine.model.tokenizer import encode
from engine.run.detokenize import TextPieces
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from engine.run.penalties import PenaltyOptions
from engine.run.sampling import Sampler, SamplingOptions, check_logits

_SAMPLING_BOUNDS: dict[str, tuple[float, float]] = {
    "temperature": (0, 2), "top_p": (1e-6, 1), "top_k": (0, 1 << 31), "min_p": (0, 1),
    "repetition_penalty": (0.01, 2),
}  # fmt: skip


@dataclass(frozen=True)
class Generation:
    """A generated text: text, token ids, seconds to the first token and in total."""

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    ttft_s: float
    total_s: float


def encode_prompt(
    tokenizer: Any, prompt: str, *, chat: bool, renderer: TemplateRenderer | None = None
) -> list[int]:
    """Token ids of a raw prompt, or of a user message in the model's own chat template.

    renderer: of templates, kept by who encodes many prompts.
    """
    if not chat:
        return encode(tokenizer, prompt)
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError("this model has no chat template: use --raw")
    messages = [{"role": "user", "content": prompt}]
    try:
        text = (renderer or TemplateRenderer()).render(
            tokenizer, messages, add_generation_prompt=True
        )
    except TemplateFailedError as error:
        raise UsageError(
            f"the model's chat template cannot be used ({error}): use --raw, or mend "
            "chat_template.jinja beside its config.json"
        ) from None
    return encode(tokenizer, text, add_special_tokens=False)


def generate(
    engine: Engine,
    tokenizer: Any,
    prompt_ids: list[int],
    *,
    max_tokens: int,
    sampling: SamplingOptions,
    on_text: Callable[[str], None] | None = None,
    stop: Sequence[str] = (),
    also_ends: frozenset[int] = frozenset(),
) -> Generation:
    """Generate until an end-of-sequence token, a stop string or max_tokens.

    on_text: called with each piece of text as soon as it consists of whole characters; stop: the
    text ends before the first of these that appears in it, while streamed text may contain its
    beginning; also_ends: tokens that end it like the checkpoint's own. Raises InfeasibleError if
    prompt and answer exceed kv.max_tokens, EvaluationError if the logits become NaN.
    """
    assert engine.config is not None
    capacity = engine.config.kv.max_tokens
    if not prompt_ids:
        raise UsageError("the prompt is empty: write at least one word")
    if len(prompt_ids) + 1 > capacity:
        raise InfeasibleError(
            f"the prompt has {len(prompt_ids)} tokens, kv.max_tokens is {capacity}: shorten it "
            "or use "
            "a config with more capacity"
        )
    limit = min(max_tokens, capacity - len(prompt_ids))
    started = time.perf_counter()
    ids: list[int] = []
    pieces = TextPieces(tokenizer)
    first = started
    sampler = Sampler(sampling, prompt_ids)
    for token in _tokens(engine, prompt_ids, sampler, limit, also_ends):
        if not ids:
            first = time.perf_counter()
        ids.append(token)
        piece = pieces.push(token)
        if piece and on_text is not None:
            on_text(piece)
        if piece and _end_of(pieces.text, stop) is not None:
            break
    rest = pieces.finish()
    if rest and on_text is not None:
        on_text(rest)
    now = time.perf_counter()
    text = pieces.text[: _end_of(pieces.text, stop)]
    return Generation(text, tuple(ids), len(prompt_ids), first - started, now - started)


def _end_of(text: str, stop: Sequence[str]) -> int | None:
    """The position of the first stop string, None if there is none."""
    return min((place for word in stop if word and (place := text.find(word)) >= 0), default=None)


def _tokens(
    engine: Engine,
    prompt_ids: list[int],
    sampler: Sampler,
    limit: int,
    also_ends: frozenset[int],
) -> Iterator[int]:
    ends = end_tokens(engine) | also_ends
    batch = MicroBatch(torch.tensor([prompt_ids]))
    logits = engine.prefill([batch])[0]
    for number in range(limit):
        last = logits[:, -1]  # [1, V]
        check_logits(last, number + 1)
        token = int(sampler(last)[0])
        if token in ends:
            return
        yield token
        if number + 1 < limit:
            batch.tokens = torch.tensor([[token]])
            logits = engine.forward([batch], "decode")[0]


@dataclass(frozen=True)
class SamplingDefaults:
    """Sampling values that a checkpoint's generation config names; None: it names none."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    @classmethod
    def of(cls, engine: Engine) -> SamplingDefaults:
        """Of the open model, as far as they are values that can be sampled with."""
        config = getattr(engine.model.model, "generation_config", None)
        found = {}
        for name, (least, most) in _SAMPLING_BOUNDS.items():
            value = getattr(config, name, None)
            if isinstance(value, int | float) and least <= value <= most:
                found[name] = value
        return cls(**found)  # type: ignore[arg-type]

    def options(self, seed: int, temperature: float, top_p: float) -> SamplingOptions:
        """Options with these values, where the checkpoint names none."""
        return SamplingOptions(
            temperature if self.temperature is None else self.temperature,
            top_p if self.top_p is None else self.top_p,
            seed,
            self.top_k or 0,
            self.min_p or 0.0,
            PenaltyOptions(self.repetition_penalty or 1.0),
        )


def end_tokens(engine: Engine) -> frozenset[int]:
    """All end-of-sequence ids that the checkpoint's generation config names, else its config."""
    model = engine.model.model
    text = model.config.get_text_config()
    for source in (getattr(model, "generation_config", None), model.config, text):
        value = getattr(source, "eos_token_id", None)
        if value is not None and value != []:
            return frozenset(value if isinstance(value, list) else [value])
    return frozenset()
