"""Chooses the next token: greedy, or seeded sampling with temperature, top-k, nucleus and min-p.

B sequences, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from engine.errors import EvaluationError
from engine.run.penalties import Penalties, PenaltyOptions

_COLDEST = 1e-5  # below this the likeliest token has all the probability, and dividing overflows


@dataclass(frozen=True)
class SamplingOptions:
    """temperature 0 is greedy; top_k: only this many of the likeliest (0: all); top_p: the smallest
    nucleus with this probability (1: all); min_p: at least this fraction of the likeliest one's
    probability (0: all); penalties: on tokens that were seen."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    top_k: int = 0
    min_p: float = 0.0
    penalties: PenaltyOptions = field(default_factory=PenaltyOptions)


class Sampler:
    """Samples with its own CPU generator, so that a seed repeats on every device. prompt: token
    ids of the one sequence, if there are penalties."""

    def __init__(self, options: SamplingOptions, prompt: Sequence[int] = ()) -> None:
        self._options = options
        self._generator = torch.Generator().manual_seed(options.seed)
        active = options.penalties.active
        self._penalties = Penalties(options.penalties, prompt) if active else None

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Choose token ids [B] from logits [B, V]; with penalties B is 1."""
        if self._penalties is None:
            return self._choose(logits)
        token = self._choose(self._penalties.apply(logits))
        self._penalties.note(int(token[0]))
        return token

    def _choose(self, logits: torch.Tensor) -> torch.Tensor:
        options = self._options
        if options.temperature < _COLDEST:
            return logits.argmax(dim=-1)  # [B]
        probabilities = distribution(logits.float().cpu(), options)  # [B, V]
        return torch.multinomial(probabilities, 1, generator=self._generator)[:, 0]  # [B]


def distribution(logits: torch.Tensor, options: SamplingOptions) -> torch.Tensor:
    """What is sampled from: unnormalised probabilities [B, V] from logits [B, V].

    In transformers' order: temperature, top_k, top_p of what is left, min_p.
    """
    scaled = logits / options.temperature
    if 0 < options.top_k < scaled.shape[-1]:
        least = scaled.topk(options.top_k, dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, -math.inf)
    probabilities = torch.softmax(scaled, dim=-1)  # [B, V]
    if options.top_p < 1:
        probabilities = _keep_nucleus(probabilities, options.top_p)
    if options.min_p > 0:
        least = options.min_p * probabilities.amax(dim=-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    return probabilities


def check_logits(last: torch.Tensor, number: int) -> None:
    """Raise EvaluationError if the logits [B, V] of an answer's token `number` are NaN."""
    if math.isnan(float(last.max())):
        raise EvaluationError(
            f"the logits became NaN at token {number} of the answer with "
            f"compute.dtype={str(last.dtype).removeprefix('torch.')}: use "
            "compute.dtype=float32, or bfloat16 where float16 overflows"
        )


def _keep_nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    ordered, order = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    ordered = ordered.masked_fill(before >= top_p, 0.0)
    return torch.zeros_like(probabilities).scatter(-1, order, ordered)
