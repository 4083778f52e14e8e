"""Quantization by the native library, straight into the bytes of a record.

Letters: N output rows, K input columns, g group, G = K/g groups.

The same codes as engine.experts.encoding.quantization, but that a search adds its sums in another
order: a few groups in ten thousand come out with another scale, as good. Codes are dense along K,
code k of a row in the bits from k * bits, the lowest first; 8 bits: int8.
"""

from __future__ import annotations

import os

import torch

from engine.experts.encoding.quantization import Quantized
from engine.native.library import Number, QuantizeJob, Threads, threads
from engine.types import Bits, OptimizeName

_NUMBERS = {
    torch.float32: Number.FLOAT32,
    torch.bfloat16: Number.BF16,
    torch.float16: Number.FP16,
}


def quantizing_threads() -> Threads | None:
    """The library's threads, one for each processor that this process may use; None without the
    library."""
    return threads(len(os.sched_getaffinity(0)))


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


def quantize_natively(
    pool: Threads, weight: torch.Tensor, bits: Bits, group_size: int, optimize: OptimizeName
) -> Quantized:
    """What engine.experts.encoding.quantization.quantize gives: one code a byte, for layouts that
    arrange the codes anew."""
    rows, columns = weight.shape
    codes = torch.empty(rows, columns * bits // 8, dtype=torch.uint8)
    shape = (rows,) if bits == 8 else (rows, columns // group_size, 2)
    scales = torch.empty(shape, dtype=torch.bfloat16)
    quantize_into(pool, weight, bits, group_size, optimize, codes, scales.view(torch.uint8))
    if bits == 8:
        return Quantized(codes.view(torch.int8), scales)
    return Quantized(one_a_byte(codes, bits), scales.permute(1, 0, 2).contiguous())  # [G, N, 2]


def one_a_byte(codes: torch.Tensor, bits: Bits) -> torch.Tensor:
    """Dense codes of 4, 3 or 2 bits, uint8 [N, K * bits / 8] -> uint8 [N, K]."""
    rows = codes.shape[0]
    eights = codes.view(rows, -1, bits).int()  # [N, K/8, bits]: the bytes of eight codes
    words = eights[..., 0]  # [N, K/8]
    for byte in range(1, bits):
        words = words | eights[..., byte] << 8 * byte
    each = [(words >> bits * number).bitwise_and_((1 << bits) - 1).byte() for number in range(8)]
    return torch.stack(each, dim=-1).view(rows, -1)
