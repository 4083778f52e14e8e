"""Penalties on tokens that were seen, OpenAI's (in the answer) and CTRL's (in prompt and answer),
and biases of given tokens.

V vocabulary. In: logits [1, V] and the tokens so far. Out: logits [1, V] on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PenaltyOptions:
    """repetition: divides positive logits of tokens of prompt and answer and multiplies negative
    ones (Keskar et al., arXiv 1909.05858; 1: off). frequency: is subtracted once for each time a
    token stands in the answer, presence: once if it does (OpenAI's definition; 0: off). bias: pairs
    of a token and what is added to its logit, before all penalties."""

    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()

    @property
    def active(self) -> bool:
        """Whether any of them changes a logit."""
        return self != PenaltyOptions()


class Penalties:
    """Penalties of one sequence. prompt: its token ids."""

    def __init__(self, options: PenaltyOptions, prompt: Sequence[int]) -> None:
        self._options = options
        self._prompt = torch.tensor(sorted(set(prompt)), dtype=torch.long)
        self._counts: dict[int, int] = {}

    def note(self, token: int) -> None:
        """Count a token of the answer."""
        self._counts[token] = self._counts.get(token, 0) + 1

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Penalised float32 copy of logits [1, V]."""
        options, made = self._options, logits.float().cpu().clone()  # [1, V]
        for token, bias in options.bias:
            made[0, token] += bias
        answer = torch.tensor(list(self._counts), dtype=torch.long)
        if options.repetition != 1:
            seen = torch.unique(torch.cat((self._prompt, answer)))
            scores = made[0, seen]
            factor = torch.where(scores > 0, 1 / options.repetition, options.repetition)
            made[0, seen] = scores * factor
        if self._counts:
            counts = torch.tensor(list(self._counts.values()), dtype=torch.float32)
            made[0, answer] -= options.frequency * counts + options.presence
        return made
