"""The kernel contract: the codes it reads, the matrices it refuses and why, and its product.

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
    """The shape of a matrix that a kernel may be asked to read: N, K, group along K."""

    rows: int
    columns: int
    group_size: int


class Kernel(Protocol):
    """A product with packed codes.

    bits: of the codes as it reads them (codes of 3 and 2 bits are expanded to 4 before);
    code_layout: required layout of codes of 4 bits.
    """

    name: str
    bits: Bits
    code_layout: CodeLayout

    def unavailable(self, device: torch.device) -> str | None:
        """Why the kernel cannot run on this device; None if it can."""

    def refuses(self, shape: MatrixShape, dtype: torch.dtype) -> str | None:
        """Why the kernel cannot take this matrix with activations of this dtype; None if it can."""

    def product(
        self, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, group_size: int
    ) -> torch.Tensor:
        """x [T, K], contiguous, on the codes' device -> [T, N] in x's dtype.

        codes: uint8 [N, K/2] in the kernel's layout, or int8 [N, K]; scales: bf16 [G, N, 2] (scale
        and zero of each group), or [N] for 8 bits.
        """
