"""The kernel contract: which codes it reads, what it refuses and why, and its product.

Letters: T tokens, N output rows, K input columns, G groups along K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from engine.experts.encoding.codec import CodeLayout
from engine.types import Bits


@dataclass(frozen=True)
class MatrixShape:
    """What a kernel must know of a matrix before it may read its codes: N, K, group along K."""

    rows: int
    columns: int
    group_size: int


class Kernel(Protocol):
    """A product with packed codes.

    bits: of the codes as it reads them (codes of 3 and 2 bits are expanded to 4 before);
    code_layout: how codes of 4 bits must lie.
    """

    name: str
    bits: Bits
    code_layout: CodeLayout

    def unavailable(self, device: torch.device) -> str | None:
        """Why it cannot run on this device; None where it can."""

    def refuses(self, shape: MatrixShape, dtype: torch.dtype) -> str | None:
        """Why it cannot take this matrix with activations of this dtype; None where it can."""

    def product(
        self, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, group_size: int
    ) -> torch.Tensor:
        """x [T, K], contiguous, on the codes' device -> [T, N] in x's dtype.

        codes: uint8 [N, K/2] in the kernel's layout, or int8 [N, K]; scales: bf16 [G, N, 2] (scale
        and zero of each group), or [N] of 8 bits.
        """
