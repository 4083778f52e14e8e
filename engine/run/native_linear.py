"""The layers outside the experts through the native library: 16-bit weights, for few tokens.

Letters: T tokens, N output rows, K input columns.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn

from engine.device.pages import PageSlabs
from engine.experts.kernels.gemm import multiplies, widened_gemm
from engine.experts.kernels.native import NUMBERS
from engine.model.native_attention import use_native_attention
from engine.native import library
from engine.native.values import NO_BIAS, Format, Matrix

_FORMATS = {torch.bfloat16: Format.BF16, torch.float16: Format.FP16}


class NativeLinear(nn.Linear):
    """A linear layer that reads its weight over all threads, up to `most_tokens` tokens."""

    most_tokens: int
    _matrix: tuple[int, Matrix] | None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [.., K] -> [.., N]."""
        tokens = x.numel() // self.in_features
        weight = self.weight
        if tokens > self.most_tokens or weight.dtype not in _FORMATS or not weight.is_contiguous():
            return self._by_torch(x)
        if self._matrix is None or self._matrix[0] != weight.data_ptr():
            self._matrix = weight.data_ptr(), _matrix(self)
        flat = x.reshape(-1, self.in_features).contiguous()  # [T, K]
        out = flat.new_empty(tokens, self.out_features)
        library.current().linear(
            self._matrix[1],
            weight.data_ptr(),
            flat.data_ptr(),
            NUMBERS[x.dtype],
            tokens,
            self.in_features,
            out.data_ptr(),
            self.out_features,
        )
        return out.view(*x.shape[:-1], self.out_features)

    def matrices(self) -> list[tuple[Matrix, int]]:
        """The matrix with its bias, and the address of its record."""
        return [(_matrix(self), self.weight.data_ptr())]

    def first_address(self) -> int:
        """Another one whenever the weight has moved."""
        return self.weight.data_ptr()

    def compute_dtype(self) -> torch.dtype:
        """Of activations."""
        return self.weight.dtype

    def _by_torch(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        if weight.dtype not in _FORMATS or multiplies(weight.dtype):
            return super().forward(x)
        flat = x.reshape(-1, self.in_features)  # [T, K]
        out = widened_gemm(flat, weight.t())  # [T, N]
        if self.bias is not None:
            out = out + self.bias
        return out.view(*x.shape[:-1], self.out_features)


def use_native_layers(model: nn.Module, most_tokens: int) -> None:
    """Make a model on the CPU use the native library for its linear layers up to this many tokens,
    its attention where one token is decoded, and its norms."""
    use_native_linears(model, most_tokens)
    use_native_attention(model)


def use_native_linears(model: nn.Module, most_tokens: int) -> None:
    """Make a model's plain linear layers multiply natively up to this many tokens. Their weights
    move to huge pages, unless something else holds them too."""
    slabs = PageSlabs()
    shared = Counter(
        parameter.data_ptr()
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
    )
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.dtype in _FORMATS:
            weight = module.weight
            if shared[weight.data_ptr()] == 1 and weight.device.type == "cpu":
                moved = slabs.take(weight.nbytes).view(weight.dtype).view(weight.shape)
                module.weight = nn.Parameter(moved.copy_(weight.detach()), requires_grad=False)
            module.__class__ = NativeLinear
            module.most_tokens = most_tokens  # type: ignore[assignment]
            module._matrix = None  # type: ignore[assignment]


def _matrix(linear: nn.Linear) -> Matrix:
    bias, number = 0, NO_BIAS
    if linear.bias is not None:
        bias = linear.bias.data_ptr() - linear.weight.data_ptr()
        number = NUMBERS[linear.bias.dtype]
    format_ = _FORMATS[linear.weight.dtype]
    return Matrix(format_, linear.out_features, linear.in_features, 0, 0, 0, 0, bias, number)
