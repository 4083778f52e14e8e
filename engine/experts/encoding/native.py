"""Quantization by the native library, straight into the bytes of a record.

Letters: N output rows, K input columns, g group, G = K/g groups.

The same codes as engine.experts.encoding.quantization, but that a search adds its sums in another
order: a few groups in ten thousand come out with another scale, as good. Codes are dense along K,
code k of a row in the bits from k * bits, the lowest first; 8 bits: int8.
"""

from __future__ import annotations

import torch

from engine.native.library import Library, Number, QuantizeJob, Threads, current, load
from engine.types import Bits, OptimizeName

_NUMBERS = {
    torch.float32: Number.FLOAT32,
    torch.bfloat16: Number.BF16,
    torch.float16: Number.FP16,
}


def quantizing_threads() -> Threads | None:
    """The library's threads; None without the library."""
    return current() if isinstance(load(), Library) else None


def quantize_into(
    pool: Threads,
    weight: torch.Tensor,
    bits: Bits,
    group_size: int,
    optimize: OptimizeName,
    codes: torch.Tensor,
    scales: torch.Tensor,
) -> None:
    """Quantize weight [N, K], of any float dtype and strides, to 8, 4, 3 or 2 bits.

    codes: uint8 [N * K * bits / 8]; scales: uint8, the bytes of bf16 [N, G, 2] (scale, zero), or of
    bf16 [N] at 8 bits. Both are contiguous and written whole.
    """
    if weight.dtype not in _NUMBERS:
        weight = weight.float()
    rows, columns = weight.shape
    groups = 1 if bits == 8 else columns // group_size
    assert codes.is_contiguous()
    assert scales.is_contiguous()
    assert codes.nbytes * 8 == rows * columns * bits, f"{codes.nbytes} bytes of codes"
    assert scales.nbytes == rows * groups * (2 if bits == 8 else 4), f"{scales.nbytes} of scales"
    job = QuantizeJob(
        weights=weight.data_ptr(),
        number=_NUMBERS[weight.dtype],
        rows=rows,
        columns=columns,
        row_stride=weight.stride(0),
        column_stride=weight.stride(1),
        bits=bits,
        group=group_size,
        weighted=optimize == "weighted_squares",
        codes=codes.data_ptr(),
        scales=scales.data_ptr(),
    )
    pool.quantize(job)
