"""The packed products that torch provides: int4 on the CPU and on CUDA, int8 on both.

Letters: T tokens, N output rows, K input columns, G groups along K.
"""

from __future__ import annotations

from typing import cast

import torch

from engine.experts.encoding.codec import INNER_TILES, CodeLayout, MatrixView, expand_codes
from engine.experts.kernels.base import MatrixShape
from engine.types import Bits

_CPU_GROUPS = (32, 64, 128, 256)


class TorchInt4:
    """`_weight_int4pack_mm_for_cpu`: 4-bit codes in the CPU's own layout."""

    name = "torch_int4"
    reads: tuple[Bits, ...] = (4, 3, 2)
    code_layout: CodeLayout = "torch_int4"
    tested = False

    def unavailable(self, device: torch.device) -> str | None:
        """Available only on the CPU."""
        return None if device.type == "cpu" else f"it runs on the CPU, not on {device.type}"

    def refuses(self, shape: MatrixShape, dtype: torch.dtype) -> str | None:
        """Takes multiples of 16 rows, groups of at least 32."""
        if shape.rows % 16:
            return f"{shape.rows} rows are no multiple of 16"
        return _group_refusal(shape)

    def product(
        self, x: torch.Tensor, view: MatrixView, bits: Bits, group_size: int
    ) -> torch.Tensor:
        """x [T, K] -> [T, N]."""
        assert view.scales is not None
        codes, scales = nibbles(view, bits), view.scales.to(x.dtype)
        out = torch.ops.aten._weight_int4pack_mm_for_cpu(x, codes, group_size, scales)
        return cast(torch.Tensor, out)  # [T, N]


class CudaInt4:
    """`_weight_int4pack_mm`: 4-bit codes in tiles of tensor cores."""

    name = "cuda_int4"
    reads: tuple[Bits, ...] = (4, 3, 2)
    code_layout: CodeLayout = "cuda_int4"
    tested = False

    def unavailable(self, device: torch.device) -> str | None:
        """Available only on CUDA, from compute capability 8.0 on."""
        if device.type != "cuda":
            return f"it runs on CUDA, not on {device.type}"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return "it needs compute capability 8.0 or newer"
        return None

    def refuses(self, shape: MatrixShape, dtype: torch.dtype) -> str | None:
        """Takes bf16 activations, multiples of 8 rows, columns in whole tiles, groups of at
        least 32."""
        if dtype != torch.bfloat16:
            return f"it takes bfloat16 activations, not {str(dtype).removeprefix('torch.')}"
        if shape.rows % 8:
            return f"{shape.rows} rows are no multiple of 8"
        if shape.columns % (16 * INNER_TILES):
            return f"{shape.columns} columns are no multiple of {16 * INNER_TILES}"
        return _group_refusal(shape)

    def product(
        self, x: torch.Tensor, view: MatrixView, bits: Bits, group_size: int
    ) -> torch.Tensor:
        """x [T, K] -> [T, N]."""
        assert view.scales is not None
        codes = nibbles(view, bits)
        rows, half = codes.shape
        tiles = codes.view(torch.int32).view(
            rows // 8, half * 2 // (16 * INNER_TILES), 32, INNER_TILES // 2
        )  # [N/8, K/(16 tiles), 32, tiles/2]
        out = torch.ops.aten._weight_int4pack_mm(x, tiles, group_size, view.scales)
        return cast(torch.Tensor, out)  # [T, N]


class TorchInt8:
    """`_weight_int8pack_mm`: 8-bit codes, one scale per row."""

    name = "torch_int8"
    reads: tuple[Bits, ...] = (8,)
    code_layout: CodeLayout = "plain"
    tested = False

    def unavailable(self, device: torch.device) -> str | None:
        """Available on the CPU and on CUDA (there only in newer releases of torch: the self-test
        shows)."""
        if device.type in ("cpu", "cuda"):
            return None
        return f"it runs on the CPU and on CUDA, not on {device.type}"

    def refuses(self, shape: MatrixShape, dtype: torch.dtype) -> str | None:
        """Takes multiples of 16 columns: it crashes on some odd widths (seen at 40 columns)."""
        return f"{shape.columns} columns are no multiple of 16" if shape.columns % 16 else None

    def product(
        self, x: torch.Tensor, view: MatrixView, bits: Bits, group_size: int
    ) -> torch.Tensor:
        """x [T, K] -> [T, N]."""
        assert view.scales is not None
        out = torch.ops.aten._weight_int8pack_mm(x, view.codes, view.scales.to(x.dtype))
        return cast(torch.Tensor, out)  # [T, N]


def _group_refusal(shape: MatrixShape) -> str | None:
    if shape.group_size not in _CPU_GROUPS:
        return f"groups of {shape.group_size} are none of {_CPU_GROUPS}"
    if shape.columns % shape.group_size:
        return f"{shape.columns} columns are no multiple of the group {shape.group_size}"
    return None


def nibbles(view: MatrixView, bits: Bits) -> torch.Tensor:
    """The code bytes of 4 bits of a matrix in torch's layouts, uint8 [N, K/2]."""
    if bits == 4:
        return view.codes
    return expand_codes(view.codes, bits, view.part.rows, view.part.columns)
