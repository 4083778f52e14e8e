"""Group quantization of expert matrices to 8, 4, 3 and 2 bits, and back.

Letters: N output rows, K input columns, g group, G = K/g groups.

8 bits: symmetric, one scale a row: w = q * s, q in [-127, 127].
4, 3 and 2 bits: w = (q - 8) * s + z for groups along K, the form of torch's int4 kernel; round to
nearest between the group's minimum and maximum, or with scales and zeros fitted by
engine.experts.encoding.scale_search. Codes of 3 bits use only 0..7 of that form, 2 bits 0..3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from engine.experts.encoding.scale_search import weighted_squares
from engine.types import Bits, OptimizeName


class Quantized(NamedTuple):
    """codes: int8 [N, K] (8 bits, signed) or uint8 [N, K]; scales: bf16 [N] or [G, N, 2] (scale,
    zero)."""

    codes: torch.Tensor
    scales: torch.Tensor


def quantize(
    weight: torch.Tensor, bits: Bits, group_size: int, optimize: OptimizeName = "none"
) -> Quantized:
    """Quantize [N, K] (any float dtype) to 8, 4, 3 or 2 bits. optimize: without effect at 8."""
    weight = weight.float()
    if bits == 8:
        return _quantize_rows(weight)
    return _quantize_groups(weight, bits, group_size, optimize)


def dequantize(quantized: Quantized, bits: Bits, group_size: int) -> torch.Tensor:
    """Dequantize in plain torch, float32 [N, K]: the oracle of every kernel."""
    codes = quantized.codes.float()
    if bits == 8:
        return codes.mul_(quantized.scales.float()[:, None])
    rows, columns = codes.shape
    scales = quantized.scales.float().permute(1, 0, 2)  # [N, G, 2]
    grouped = codes.view(rows, columns // group_size, group_size)  # [N, G, g]
    # In place: it needs memory for only one float32 copy of the matrix.
    return grouped.sub_(8).mul_(scales[..., :1]).add_(scales[..., 1:]).view(rows, columns)


def _quantize_rows(weight: torch.Tensor) -> Quantized:
    scales = (weight.abs().amax(dim=1) / 127).clamp_min(1e-12).to(torch.bfloat16)
    codes = torch.round(weight / scales.float()[:, None]).clamp(-127, 127).to(torch.int8)
    return Quantized(codes, scales)


def _quantize_groups(
    weight: torch.Tensor, bits: Bits, group_size: int, optimize: OptimizeName
) -> Quantized:
    rows, columns = weight.shape
    top = (1 << bits) - 1
    grouped = weight.reshape(rows, columns // group_size, group_size)  # [N, G, g]
    low = grouped.amin(dim=-1)  # [N, G]
    high = grouped.amax(dim=-1)
    # Scale and zero are stored in bf16: round them first, then choose codes against what is stored.
    scale = ((high - low) / top).clamp_min(1e-12).to(torch.bfloat16)
    zero = (low + 8 * scale.float()).to(torch.bfloat16)
    if optimize == "weighted_squares":
        scale, zero = weighted_squares(grouped, scale, zero, top)
    offset = zero.float() - 8 * scale.float()
    codes = torch.round((grouped - offset[..., None]) / scale.float()[..., None])
    codes = codes.clamp(0, top).to(torch.uint8).view(rows, columns)
    scales = torch.stack((scale, zero), dim=-1).permute(1, 0, 2).contiguous()  # [G, N, 2]
    return Quantized(codes, scales)
