"""Multiplies by one matrix of a record with the fastest kernel that passed its self-test.

Letters: T tokens, N output rows, K input columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from engine.experts.encoding.codec import (
    CodeLayout,
    MatrixView,
    can_unpack,
    expand_codes,
    unpack_codes,
)
from engine.experts.encoding.quantization import Quantized, dequantize
from engine.experts.kernels.gemm import gemm
from engine.experts.kernels.registry import KernelSupport
from engine.types import Bits, KernelName

# Above this many tokens an expert is dequantized once and multiplied by GEMM, unless a machine
# profile says otherwise. Measured on the reference machine: int4 0.40 ms, bf16 GEMM 0.24 ms +
# dequantization 0.5 ms at 64 tokens.
CROSSOVER_TOKENS = 128

Product = Callable[[torch.Tensor, MatrixView], torch.Tensor]
"""x [T, K] times a matrix in a slot -> [T, N]."""


class Multiplier:
    """x [T, K] times an expert's matrix -> [T, N], by the fastest correct kernel.

    group_size: of 4, 3 and 2 bits; name: `dequantize` forces the oracle, a kernel's name forces
    that kernel; crossover: the packed kernels are used up to this number of tokens.
    """

    def __init__(
        self,
        bits: Bits,
        group_size: int,
        code_layout: CodeLayout,
        support: KernelSupport,
        name: KernelName,
        crossover: int = CROSSOVER_TOKENS,
    ) -> None:
        self._bits = bits
        self._crossover = crossover
        self._group = group_size
        self._code_layout = code_layout
        kernel = support.kernel_for(bits, name)
        unreadable = kernel is not None and bits <= 4 and kernel.code_layout != code_layout
        self._kernel = None if unreadable else kernel

    def __call__(self, x: torch.Tensor, view: MatrixView) -> torch.Tensor:
        """x: [T, K], with any strides, in the compute dtype. Returns [T, N] in the same dtype."""
        if self._bits == 16:
            weight = view.codes.to(x.dtype)
            return gemm(x, weight if view.part.transposed else weight.t())  # [T, N]
        if self._kernel is not None:
            opaque = self._bits <= 4 and not can_unpack(view.part.rows, self._code_layout)
            if x.shape[0] <= self._crossover or opaque:
                assert view.scales is not None
                codes = self._codes(view)
                out = self._kernel.product(x.contiguous(), codes, view.scales, self._group)
                return out.to(x.dtype)  # [T, N]
        return gemm(x, self.dequantized(view).t())  # [T, N]

    def dequantized(self, view: MatrixView) -> torch.Tensor:
        """The matrix as plain weights, float32 [N, K]."""
        assert view.scales is not None
        codes = self._codes(view)
        if self._bits <= 4:
            codes = unpack_codes(codes, view.part.columns, self._code_layout)
        return dequantize(Quantized(codes, view.scales), self._bits, self._group)

    def _codes(self, view: MatrixView) -> torch.Tensor:
        if self._bits in (8, 4):
            return view.codes
        return expand_codes(view.codes, self._bits, view.part.rows, view.part.columns)
