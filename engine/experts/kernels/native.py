"""The native library's products on the CPU: every precision, read in place, over all threads.

Letters: T tokens, N output rows, K input columns, G groups along K.
"""

from __future__ import annotations

import torch

from engine.experts.encoding.codec import CodeLayout, MatrixView
from engine.experts.kernels.base import MatrixShape
from engine.layout.prequantized import PrequantizedFormat
from engine.native import library
from engine.native.values import NO_BIAS, Format, Matrix, Number
from engine.types import ActivationBits, Bits

GROUPS = (16, 32, 64, 128)
NUMBERS = {
    torch.float32: Number.FLOAT32,
    torch.bfloat16: Number.BF16,
    torch.float16: Number.FP16,
}
_CODED = {8: Format.INT8, 4: Format.INT4, 3: Format.INT3, 2: Format.INT2}
_SIXTEEN = {
    (torch.bfloat16, False): Format.BF16,
    (torch.float16, False): Format.FP16,
    (torch.bfloat16, True): Format.BF16_COLUMNS,
    (torch.float16, True): Format.FP16_COLUMNS,
}


class Native:
    """engine.native as a kernel. Its sums keep one order on every processor and for every number of
    threads; it compares itself with its scalar reference when it is opened."""

    name = "native"
    reads: tuple[Bits, ...] = (16, 8, 4, 3, 2)
    code_layout: CodeLayout = "plain"
    tested = True

    def unavailable(self, device: torch.device) -> str | None:
        """Available on the CPU, if the library was built."""
        if device.type != "cpu":
            return f"it runs on the CPU, not on {device.type}"
        found = library.load()
        return found if isinstance(found, str) else None

    def refuses(self, shape: MatrixShape, dtype: torch.dtype) -> str | None:
        """Takes any number of rows and columns; columns in whole groups where there are groups."""
        if dtype not in NUMBERS:
            return f"it takes activations of {', '.join(map(str, NUMBERS))}, not {dtype}"
        if not shape.group_size:
            return None
        if shape.group_size not in GROUPS:
            return f"groups of {shape.group_size} are none of {GROUPS}"
        if shape.columns % shape.group_size:
            return f"{shape.columns} columns are no multiple of the group {shape.group_size}"
        return None

    def product(
        self, x: torch.Tensor, view: MatrixView, bits: Bits, group_size: int
    ) -> torch.Tensor:
        """x [T, K] -> [T, N], summed in float32."""
        return linear(x, view, matrix_of(view, bits, group_size))

    def plain(
        self, view: MatrixView, bits: Bits, group_size: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """The matrix as plain weights [N, K], rounded to dtype."""
        return plain(view, matrix_of(view, bits, group_size), dtype)


def matrix_of(
    view: MatrixView, bits: Bits, group_size: int, activation_bits: ActivationBits = 16
) -> Matrix:
    """How a matrix lies, as seen from its codes, and what it is multiplied by."""
    part, scales = view.part, view.scales
    sixteen = bits == 16
    format_ = _SIXTEEN[view.codes.dtype, part.transposed] if sixteen else _CODED[bits]
    offset = 0 if scales is None else scales.data_ptr() - view.codes.data_ptr()
    shape = part.rows, part.columns, group_size, 0
    return Matrix(format_, *shape, 0, offset, 0, NO_BIAS, activation_bits)


def published_matrix(
    view: MatrixView, published: PrequantizedFormat, activation_bits: ActivationBits = 16
) -> Matrix | None:
    """How a matrix of a pre-quantized checkpoint lies; None if it is stored [K, N], or its blocks
    are not those that are read here."""
    assert view.scales is not None
    offset = view.scales.data_ptr() - view.codes.data_ptr()
    rows, columns = view.part.rows, view.part.columns
    if published.name == "mxfp4":
        shape = rows, columns, 32, 0
        return Matrix(Format.MXFP4, *shape, 0, offset, 0, NO_BIAS, activation_bits)
    if published.name == "int4":
        group = published.block_columns
        if group not in GROUPS:
            return None
        shape = rows, columns, group, 0
        return Matrix(Format.UINT4, *shape, 0, offset, 0, NO_BIAS, activation_bits)
    if view.part.transposed or published.block_columns % 64:
        return None
    blocks = published.block_columns, published.block_rows
    return Matrix(Format.FP8, rows, columns, *blocks, 0, offset, 0, NO_BIAS)


def linear(
    x: torch.Tensor, view: MatrixView, matrix: Matrix, out: torch.Tensor | None = None
) -> torch.Tensor:
    """x [T, K], contiguous -> [T, N], into `out` if given (its rows may lie apart)."""
    if out is None:
        out = x.new_empty(x.shape[0], matrix.rows)
    library.current().linear(
        matrix,
        view.codes.data_ptr(),
        x.data_ptr(),
        NUMBERS[x.dtype],
        x.shape[0],
        x.shape[1],
        out.data_ptr(),
        out.stride(0),
    )
    return out  # [T, N]


def plain(view: MatrixView, matrix: Matrix, dtype: torch.dtype) -> torch.Tensor:
    """The matrix as plain weights [N, K], rounded to dtype. Not for matrices stored [K, N]."""
    out = torch.empty(matrix.rows, matrix.columns, dtype=dtype)
    library.current().plain(
        matrix, view.codes.data_ptr(), 0, matrix.rows, out.data_ptr(), NUMBERS[dtype]
    )
    return out  # [N, K]
