"""The kernel contract: the codes it reads, the matrices it refuses and why, and its product.

Letters: T tokens, N output rows, K input columns, G groups along K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from engine.experts.encoding.codec import CodeLayout, MatrixView
from engine.types import Bits


@dataclass(frozen=True)
class MatrixShape:
    """The shape of a matrix that a kernel may be asked to read: N, K, group along K."""

    rows: int
    columns: int
    group_size: int


class Kernel(Protocol):
    """A product with packed codes.

    reads: the bits of the records that it multiplies; code_layout: required layout of codes of at
    most 4 bits; tested: it needs no self-test in a child process.
    """

    name: str
    reads: tuple[Bits, ...]
    code_layout: CodeLayout
    tested: bool

    def unavailable(self, device: torch.device) -> str | None:
        """Why the kernel cannot run on this device; None if it can."""

    def refuses(self, shape: MatrixShape, dtype: torch.dtype) -> str | None:
        """Why the kernel cannot take this matrix with activations of this dtype; None if it can."""

    def product(
        self, x: torch.Tensor, view: MatrixView, bits: Bits, group_size: int
    ) -> torch.Tensor:
        """x [T, K], contiguous, on the codes' device -> [T, N] in x's dtype.

        view: a matrix of a record of these bits in the kernel's layout.
        """
