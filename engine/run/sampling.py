"""Chooses the next token: greedy, or seeded sampling with temperature and nucleus."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from engine.errors import EvaluationError

_COLDEST = 1e-5  # below this the likeliest token has all the probability, and dividing overflows


@dataclass(frozen=True)
class SamplingOptions:
    """temperature 0 is greedy; top_p: the smallest nucleus with this probability (1: all)."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class Sampler:
    """Samples with its own CPU generator, so that a seed repeats on every device."""

    def __init__(self, options: SamplingOptions) -> None:
        self._options = options
        self._generator = torch.Generator().manual_seed(options.seed)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Choose token ids [B] from logits [B, V]."""
        if self._options.temperature < _COLDEST:
            return logits.argmax(dim=-1)  # [B]
        scaled = logits.float().cpu() / self._options.temperature
        probabilities = torch.softmax(scaled, dim=-1)  # [B, V]
        if self._options.top_p < 1:
            probabilities = _keep_nucleus(probabilities, self._options.top_p)
        return torch.multinomial(probabilities, 1, generator=self._generator)[:, 0]  # [B]


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
