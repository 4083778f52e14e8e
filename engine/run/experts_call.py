"""What micro-batches ask of a layer's experts.

Letters: T tokens, one micro-batch's or those of several, K chosen experts, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine.model.joined_attention import each_own
from engine.run.on_host import OnHost


@dataclass
class ExpertsCall:
    """Tokens that wait in the experts hook of a layer: hidden [T, D], index and weights [T, K].
    on_host: None if nobody asked."""

    layer: int
    hidden: torch.Tensor
    index: torch.Tensor
    weights: torch.Tensor
    on_host: OnHost | None = None


@dataclass(frozen=True)
class GateInput:
    """What a router was called with for micro-batches of so many tokens each, together: arguments,
    and keywords. Tensors with a row for each token are split. None: there is no router."""

    sizes: Sequence[int]
    called_with: tuple[tuple[Any, ...], dict[str, Any]] | None

    def split(self) -> list[tuple[tuple[Any, ...], dict[str, Any]] | None]:
        """Of each micro-batch."""
        if self.called_with is None:
            return [None for _ in self.sizes]
        arguments, keywords = self.called_with
        given, names = [*arguments, *keywords.values()], tuple(keywords)
        columns = [each_own(value, self.sizes) for value in given]
        own = zip(*columns, strict=True) if given else [() for _ in self.sizes]
        count = len(arguments)
        return [(one[:count], dict(zip(names, one[count:], strict=True))) for one in own]
