"""Linear layers of the non-expert weights at 8 or 4 bits, quantized as they are loaded.

Letters: T tokens, N output rows, K input columns. They use the same group quantizer and kernels as
experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.device.pages import PageSlabs
from engine.experts.encoding.codec import MatrixView, RecordFormat, encode, matrix_view
from engine.experts.kernels.multiplier import Multiplier
from engine.experts.kernels.native import NUMBERS
from engine.experts.kernels.probe import probe_support
from engine.experts.kernels.registry import NO_KERNELS, KernelSupport
from engine.layout.non_expert import NonExpertMatrix, non_expert_blocks
from engine.layout.record import Part, RecordLayout
from engine.native.values import Matrix
from engine.run.non_expert import NonExpertSettings
from engine.types import Bits, KernelName


class QuantizedLinear(nn.Module):
    """x [.., K] -> [.., N] through blocks of rows, each a record of one matrix."""

    def __init__(self, linear: nn.Linear, blocks: list[tuple[RecordFormat, Multiplier]]) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias: nn.Parameter | None
        self.register_parameter("bias", linear.bias)
        self._blocks = blocks
        self._dtype = linear.weight.dtype
        self._views: list[MatrixView] = []

    def fill(self, weight: torch.Tensor, slabs: PageSlabs) -> None:
        """Quantize the weight [N, K] into the blocks, which lie in these slabs."""
        start = 0
        for number, (record, _) in enumerate(self._blocks):
            rows = record.parts[0].rows
            raw = slabs.take(record.size_bytes)
            raw.copy_(encode({"weight": weight[start : start + rows]}, record))
            self.register_buffer(f"block_{number}", raw, persistent=False)
            start += rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer as nn.Linear does."""
        flat = x.reshape(-1, self.in_features).contiguous()  # [T, K]
        out = flat.new_empty(flat.shape[0], self.out_features)  # [T, N]
        start = 0
        for multiply, view in self._multiplied():
            multiply.into(flat, view, out[:, start : start + view.part.rows])
            start += view.part.rows
        if self.bias is not None:
            out = out + self.bias
        return out.view(*x.shape[:-1], self.out_features)

    def matrices(self) -> list[tuple[Matrix, int]]:
        """Each block's matrix with its part of the bias, and the address of its record; none if
        they are not multiplied natively."""
        found = []
        start = 0
        for multiply, view in self._multiplied():
            matrix = multiply.native_matrix(view)
            if matrix is None:
                return []
            address = view.codes.data_ptr()
            if self.bias is not None:
                own = self.bias.data_ptr() + start * self.bias.itemsize
                matrix.bias_offset, matrix.bias_number = own - address, NUMBERS[self.bias.dtype]
            found.append((matrix, address))
            start += view.part.rows
        return found

    def first_address(self) -> int:
        """Another one whenever the weight has moved."""
        first = self._buffers["block_0"]
        assert first is not None
        return first.data_ptr()

    def compute_dtype(self) -> torch.dtype:
        """Of activations."""
        return self._dtype

    def _multiplied(self) -> Iterator[tuple[Multiplier, MatrixView]]:
        if not self._views:
            self._views = [
                matrix_view(buffer, record, record.parts[0])
                for (record, _), buffer in zip(self._blocks, self.buffers(), strict=True)
            ]
        multipliers = (multiply for _, multiply in self._blocks)
        return zip(multipliers, self._views, strict=True)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._views = []  # views would keep moved or dropped buffers alive
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


class NonExpertQuantizer:
    """Creates a linear layer's quantized replacement as its weight is loaded.

    settings: with 8 or 4 bits; kernels: supported packed kernels, by bits and shape; crossover:
    they are used up to this number of tokens.
    """

    def __init__(
        self,
        settings: NonExpertSettings,
        kernels: dict[tuple[Bits, int, int], KernelSupport],
        crossover: int,
    ) -> None:
        self._settings = settings
        self._kernels = kernels
        self._crossover = crossover
        self._slabs = PageSlabs()

    def __call__(self, linear: nn.Linear, weight: torch.Tensor) -> nn.Module:
        """The quantized layer. weight: [N, K], any float dtype."""
        bits, group = self._settings.bits, self._settings.group
        layouts = non_expert_blocks(weight.shape[0], weight.shape[1], bits, group)
        made = QuantizedLinear(linear, [self._block(layout, weight) for layout in layouts])
        made.fill(weight, self._slabs)
        return made

    def _block(self, layout: RecordLayout, weight: torch.Tensor) -> tuple[RecordFormat, Multiplier]:
        part = block_part(layout, weight.shape[1])
        support = self._kernels.get((layout.bits, part.rows, part.columns), NO_KERNELS)
        kernel = self._settings.kernel
        code_layout = support.code_layout(kernel)
        record = RecordFormat((part,), layout, torch.bfloat16, code_layout)
        multiply = Multiplier(
            layout.bits,
            layout.group_size,
            code_layout,
            support,
            kernel,
            self._crossover,
            self._settings.activation_bits,
        )
        return record, multiply


def block_part(layout: RecordLayout, columns: int) -> Part:
    """The matrix of a block, from the size of its codes."""
    rows = layout.field("weight").size_bytes * 8 // layout.bits // columns
    return Part("weight", (rows, columns))


def non_expert_kernels(
    matrices: Iterable[NonExpertMatrix],
    bits: Bits,
    wanted_group: int,
    dtype: torch.dtype,
    device: torch.device,
    folder: Path,
    wanted: KernelName,
) -> dict[tuple[Bits, int, int], KernelSupport]:
    """The packed kernels that work for each shape of a block; each is tested by itself, in a
    child process, once per machine."""
    found: dict[tuple[Bits, int, int], KernelSupport] = {}
    for matrix in matrices:
        for layout in non_expert_blocks(matrix.rows, matrix.columns, bits, wanted_group):
            part = block_part(layout, matrix.columns)
            key = (layout.bits, part.rows, part.columns)
            if key not in found:
                found[key] = probe_support(
                    (part,), layout.bits, layout.group_size, dtype, device, folder, wanted
                )
    return found
