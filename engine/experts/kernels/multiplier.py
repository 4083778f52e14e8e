"""Multiplies by one matrix of a record with the fastest kernel that is right on this machine.

Letters: T tokens, N output rows, K input columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from engine.experts.encoding.codec import (
    CodeLayout,
    MatrixView,
    can_unpack,
    unpack_codes,
    unpack_plain,
)
from engine.experts.encoding.quantization import Quantized, dequantize
from engine.experts.kernels.base import Kernel
from engine.experts.kernels.gemm import gemm
from engine.experts.kernels.native import Native, linear, matrix_of
from engine.experts.kernels.registry import KernelSupport
from engine.experts.kernels.rounding import ROW_GROUP, rounded_activations
from engine.experts.kernels.torch_packed import nibbles
from engine.native.values import Matrix
from engine.types import ActivationBits, Bits, KernelName

# Above this many tokens an expert is dequantized once and multiplied by GEMM, unless a machine
# profile says otherwise (docs/lab/2026-11-30-native-products.md).
CROSSOVER_TOKENS: Mapping[Bits, int] = {16: 8, 8: 8, 4: 24, 3: 24, 2: 24}
ROUNDED_CROSSOVER_TOKENS: Mapping[Bits, int] = {16: 8, 8: 24, 4: 24, 3: 24, 2: 24}
"""With activations of 8 bits."""

Product = Callable[[torch.Tensor, MatrixView], torch.Tensor]
"""x [T, K] times a matrix in a slot -> [T, N]."""


class Multiplier:
    """x [T, K] times an expert's matrix -> [T, N], by the fastest correct kernel.

    group_size: of 4, 3 and 2 bits; name: `dequantize` forces the oracle, a kernel's name forces
    that kernel; crossover: the packed kernels are used up to this number of tokens, None for the
    default of these bits; activation_bits: 8 rounds x before it meets codes.
    """

    def __init__(
        self,
        bits: Bits,
        group_size: int,
        code_layout: CodeLayout,
        support: KernelSupport,
        name: KernelName,
        crossover: int | None = None,
        activation_bits: ActivationBits = 16,
    ) -> None:
        self._bits = bits
        self._activation_bits = activation_bits
        self._crossover = CROSSOVER_TOKENS[bits] if crossover is None else crossover
        self._group = group_size
        self._code_layout = code_layout
        kernel = support.kernel_for(bits, name)
        unreadable = kernel is not None and bits <= 4 and kernel.code_layout != code_layout
        self._kernel: Kernel | None = None if unreadable else kernel

    def __call__(self, x: torch.Tensor, view: MatrixView) -> torch.Tensor:
        """x: [T, K], with any strides, in the compute dtype. Returns [T, N] in the same dtype."""
        kernel = self._kernel
        if isinstance(kernel, Native) and x.shape[0] <= self._crossover:
            return linear(x.contiguous(), view, self._matrix(view))
        if self._activation_bits == 8 and self._bits != 16:
            x = rounded_activations(x, ROW_GROUP if self._bits == 8 else self._group)
        if kernel is not None:
            opaque = self._bits <= 4 and not can_unpack(view.part.rows, self._code_layout)
            if x.shape[0] <= self._crossover or opaque:
                return kernel.product(x.contiguous(), view, self._bits, self._group).to(x.dtype)
        if self._bits == 16:
            weight = view.codes.to(x.dtype)
            return gemm(x, weight if view.part.transposed else weight.t())  # [T, N]
        if isinstance(kernel, Native):
            return gemm(x, kernel.plain(view, self._bits, self._group, x.dtype).t())  # [T, N]
        return gemm(x, self.dequantized(view).t())  # [T, N]

    def into(self, x: torch.Tensor, view: MatrixView, out: torch.Tensor) -> None:
        """Multiply into `out` [T, N] of x's dtype, whose rows may lie apart. x: contiguous."""
        if isinstance(self._kernel, Native) and x.shape[0] <= self._crossover:
            linear(x, view, self._matrix(view), out)
        else:
            out.copy_(self(x, view))

    def native_matrix(self, view: MatrixView) -> Matrix | None:
        """How the matrix lies for native products; None if it is multiplied otherwise."""
        if not isinstance(self._kernel, Native):
            return None
        return self._matrix(view)

    def _matrix(self, view: MatrixView) -> Matrix:
        return matrix_of(view, self._bits, self._group, self._activation_bits)

    def dequantized(self, view: MatrixView) -> torch.Tensor:
        """The matrix as plain weights, float32 [N, K]: in plain torch, the oracle."""
        assert view.scales is not None
        if self._bits == 8:
            codes = view.codes
        elif self._code_layout == "plain":
            codes = unpack_plain(view.codes, self._bits)
        else:
            codes = unpack_codes(nibbles(view, self._bits), view.part.columns, self._code_layout)
        return dequantize(Quantized(codes, view.scales), self._bits, self._group)
