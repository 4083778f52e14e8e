"""The contract of what computes several experts of a layer at once: natively or in few launches.

Letters: T tokens, K chosen experts, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from engine.native.values import Experts
from engine.types import Bits


class FusedExperts(Protocol):
    """Computes experts of one model whose records lie where its device reads them.

    A layer is one `begin`, any number of `run`, one `combine`; layers come one after the other.
    most_tokens: the most tokens of one expert that are computed so, by bits; no entry: none are.
    """

    most_tokens: Mapping[Bits, int]

    def only(self, tokens: int) -> Experts | None:
        """How experts lie if one native call may compute whole layers of this many tokens."""

    def most_waves(self, tokens: int) -> int | None:
        """In how many waves at most the experts of this many tokens should come; None: as they
        arrive."""

    def begin(self, index: torch.Tensor) -> None:
        """A layer begins. index: int64 [T, K], contiguous; an expert that the layer does not have
        means no expert.

        The host has waited for work that was queued after the last `run` of the layer before.
        """

    def run(
        self,
        bits: Bits,
        addresses: Mapping[int, int],
        x: torch.Tensor,
        index: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        """Compute the experts at these addresses for their tokens.

        addresses: of records of these bits, by expert; x [T, D]; index: as in `begin`; out [T*K, D]
        of x's dtype. All contiguous. Places of other experts are left as they are.
        """

    def combine(self, out: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """out [T*K, D] of the experts in routing order and their weights [T, K] -> [T, D].

        Weights and each weighted output are rounded to out's dtype, then summed in float32.
        """
