"""Converts one expert between tensors and record bytes, and gives typed views into a record.

Letters: N output rows, K input columns, G groups along K.

Codes of at most 4 bits lie `plain`: one after the other along K, the first in the lowest bits, each
row in bytes of its own, with the scales of a row together. The same bytes serve the native products
on the CPU and triton on a GPU. Where neither can be had, they lie in torch's own packed layout for
its CPU kernel (`torch_int4`, which depends on the CPU's capability) or its CUDA kernel
(`cuda_int4`). There codes of 3 and 2 bits are the bytes of 4, squeezed, so that expanding needs
only a few byte operations. At 2 bits, the first half of the code bytes lies in the bits 0x33 of the
squeezed bytes, the second half in 0xCC. At 3 bits, the first three quarters of the code bytes lie
in the bits 0xEE, and the bits 0x11 of each third hold one bit of every code of the last quarter.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from engine.experts.encoding.native import quantize_into, quantizing_threads
from engine.experts.encoding.quantization import Quantized, quantize
from engine.layout.prequantized import PrequantizedFormat
from engine.layout.record import Part, RecordLayout
from engine.native.library import Threads
from engine.types import Bits, OptimizeName

CodeLayout = Literal["torch_int4", "cuda_int4", "plain"]
INNER_TILES = 8  # tiles of 16 columns that torch's CUDA layout groups


@dataclass(frozen=True)
class RecordFormat:
    """Everything that decides the bytes of a record.

    sixteen: dtype of 16-bit parts and biases; code_layout: layout of codes of at most 4 bits;
    prequantized: set if the record keeps a pre-quantized checkpoint's own codes
    (engine.experts.kernels.prequantized); optimize: how the scales and zeros of codes of at most 4
    bits are chosen.
    """

    parts: tuple[Part, ...]
    layout: RecordLayout
    sixteen: torch.dtype
    code_layout: CodeLayout
    prequantized: PrequantizedFormat | None = None
    optimize: OptimizeName = "none"

    @property
    def size_bytes(self) -> int:
        """Padded bytes of one record."""
        return self.layout.size_bytes


@dataclass(frozen=True)
class MatrixView:
    """A matrix inside a record: codes (or 16-bit weights) and scales, views of the slot's bytes.

    codes: as the part is stored at 16 bits, int8 [N, K] at 8, bytes at fewer: in the plain layout
    uint8 [N, K * bits / 8]. scales: bf16 [N] at 8 bits, [G, N, 2] (scale, zero) at fewer, with the
    rows outermost in memory in the plain layout.
    """

    part: Part
    codes: torch.Tensor
    scales: torch.Tensor | None


def encode(tensors: Mapping[str, torch.Tensor], record: RecordFormat) -> torch.Tensor:
    """Pack one expert. tensors: as the module stores them. Returns uint8 [record bytes]."""
    out = torch.zeros(record.size_bytes, dtype=torch.uint8)
    bits, group = record.layout.bits, record.layout.group_size
    native = quantizing_threads() if bits < 16 else None
    for part in record.parts:
        tensor = tensors[part.name]
        if part.kind == "vector" or bits == 16:
            put_field(out, record, part.name, tensor.to(record.sixteen))
            continue
        weight = tensor.t() if part.transposed else tensor  # [N, K]
        if native is not None and (bits == 8 or record.code_layout == "plain"):
            codes = take_field(out, record, part.name)
            scales = take_field(out, record, f"{part.name}.scales")
            quantize_into(native, weight, bits, group, record.optimize, codes, scales)
            continue
        quantized = _quantize(native, weight, record)
        put_field(out, record, part.name, _pack_codes(quantized, record))
        put_field(out, record, f"{part.name}.scales", _lay_scales(quantized.scales, record))
    return out


def matrix_view(record_bytes: torch.Tensor, record: RecordFormat, part: Part) -> MatrixView:
    """Typed views of one matrix. record_bytes: uint8 [record bytes], on any device."""
    raw = take_field(record_bytes, record, part.name)
    bits, group = record.layout.bits, record.layout.group_size
    if bits == 16:
        return MatrixView(part, raw.view(record.sixteen).view(part.shape), None)
    scales = take_field(record_bytes, record, f"{part.name}.scales").view(torch.bfloat16)
    if bits == 8:
        return MatrixView(part, raw.view(torch.int8).view(part.rows, part.columns), scales)
    if record.code_layout == "plain":
        scales = scales.view(part.rows, part.columns // group, 2).transpose(0, 1)  # [G, N, 2]
        return MatrixView(part, raw.view(part.rows, -1), scales)
    scales = scales.view(part.columns // group, part.rows, 2)  # [G, N, 2]
    codes = raw.view(part.rows, part.columns // 2) if bits == 4 else raw
    return MatrixView(part, codes, scales)


def vector_view(record_bytes: torch.Tensor, record: RecordFormat, part: Part) -> torch.Tensor:
    """Typed view of a bias, [N]."""
    return take_field(record_bytes, record, part.name).view(record.sixteen)


def expand_codes(planes: torch.Tensor, bits: Bits, rows: int, columns: int) -> torch.Tensor:
    """Expand squeezed codes of 3 or 2 bits, uint8 [N*K*bits/8], to code bytes, [N, K/2]."""
    out = torch.empty(rows, columns // 2, dtype=torch.uint8, device=planes.device)
    word, each = _word(out.numel() // 4)
    squeezed, codes = planes.view(word), out.view(-1).view(word)
    size = squeezed.numel()
    if bits == 2:
        torch.bitwise_and(squeezed, 0x33 * each, out=codes[:size])
        torch.bitwise_right_shift(squeezed, 2, out=codes[size:]).bitwise_and_(0x33 * each)
        return out
    torch.bitwise_right_shift(squeezed, 1, out=codes[:size]).bitwise_and_(0x77 * each)
    spare = torch.bitwise_and(squeezed, 0x11 * each).view(3, -1)
    torch.add(spare[0], spare[1], alpha=2, out=codes[size:])
    codes[size:].add_(spare[2], alpha=4)
    return out


def unpack_plain(codes: torch.Tensor, bits: Bits) -> torch.Tensor:
    """Unpack plain codes of 4, 3 or 2 bits, uint8 [N, K * bits / 8], to one per byte, [N, K]."""
    if bits == 3:  # eight codes in three bytes
        words = codes.view(codes.shape[0], -1, 3).to(torch.int32)  # [N, K/8, 3]
        words = words[..., 0] | (words[..., 1] << 8) | (words[..., 2] << 16)
        shifts = torch.arange(0, 24, 3, device=codes.device, dtype=torch.int32)
        found = (words[..., None] >> shifts) & 7  # [N, K/8, 8]
        return found.to(torch.uint8).view(codes.shape[0], -1)
    shifts = torch.arange(0, 8, bits, device=codes.device, dtype=torch.uint8)
    found = (codes[..., None] >> shifts) & ((1 << bits) - 1)
    return found.view(codes.shape[0], -1)


def pack_plain(codes: torch.Tensor, bits: Bits) -> torch.Tensor:
    """Inverse of unpack_plain. codes: uint8 [N, K], K a multiple of 8."""
    rows = codes.shape[0]
    if bits == 3:
        shifts = torch.arange(0, 24, 3, dtype=torch.int32)
        words = (codes.view(rows, -1, 8).to(torch.int32) << shifts).sum(-1)  # [N, K/8]
        parts = [(words >> shift) & 0xFF for shift in (0, 8, 16)]
        return torch.stack(parts, dim=-1).to(torch.uint8).view(rows, -1)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    grouped = codes.view(rows, -1, 8 // bits) << shifts
    return grouped.sum(-1, dtype=torch.uint8)


def unpack_codes(codes: torch.Tensor, columns: int, code_layout: CodeLayout) -> torch.Tensor:
    """Unpack 4-bit code bytes [N, K/2] to one code per byte, uint8 [N, K].

    The torch_int4 layout is known for N a multiple of block_rows() (the kernel self-test checks
    it); other shapes, and cuda_int4, must go through the kernel.
    """
    rows = codes.shape[0]
    assert can_unpack(rows, code_layout), f"{rows} rows of {code_layout}"
    if code_layout == "plain":
        return unpack_plain(codes, 4)
    block = block_rows()
    blocks = codes.reshape(rows // block, columns, block // 2)
    both = torch.cat((blocks & 0x0F, blocks >> 4), dim=-1)  # [N/block, K, block]
    return both.transpose(1, 2).reshape(rows, columns)


def can_unpack(rows: int, code_layout: CodeLayout) -> bool:
    """Whether unpack_codes supports this layout for this number of rows."""
    return code_layout == "plain" or (code_layout == "torch_int4" and rows % block_rows() == 0)


@functools.cache
def block_rows() -> int:
    """Number of rows that torch's CPU layout interleaves: four vectors of float32."""
    return 64 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 32


def _quantize(native: Threads | None, weight: torch.Tensor, record: RecordFormat) -> Quantized:
    """Codes one a byte, which a layout then arranges. native: not for 8 bits."""
    bits, group = record.layout.bits, record.layout.group_size
    if native is None:
        return quantize(weight, bits, group, record.optimize)
    rows, columns = weight.shape
    codes = torch.empty(rows, columns * bits // 8, dtype=torch.uint8)
    scales = torch.empty(rows, columns // group, 2, dtype=torch.bfloat16)
    quantize_into(native, weight, bits, group, record.optimize, codes, scales.view(torch.uint8))
    return Quantized(unpack_plain(codes, bits), scales.transpose(0, 1).contiguous())  # [G, N, 2]


def _pack_codes(quantized: Quantized, record: RecordFormat) -> torch.Tensor:
    codes = quantized.codes
    packed: torch.Tensor
    if record.layout.bits == 8:
        return codes
    if record.code_layout == "torch_int4":
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)
    elif record.code_layout == "cuda_int4":
        pairs = (codes[:, 0::2] << 4) | codes[:, 1::2]  # [N, K/2]
        tiles = torch.ops.aten._convert_weight_to_int4pack(pairs.to("cuda"), INNER_TILES)
        packed = tiles.cpu().contiguous().view(torch.uint8)
    else:
        return pack_plain(codes, record.layout.bits)
    if record.layout.bits == 4:
        return packed
    return _squeeze(packed.reshape(-1), record.layout.bits)


def _lay_scales(scales: torch.Tensor, record: RecordFormat) -> torch.Tensor:
    """Scales and zeros [G, N, 2] in the order of the record's layout; scales of 8 bits as given."""
    by_row = record.code_layout == "plain" and record.layout.bits != 8
    return scales.transpose(0, 1) if by_row else scales


def _squeeze(codes: torch.Tensor, bits: Bits) -> torch.Tensor:
    """Inverse of expand_codes: code bytes [N*K/2] to [N*K*bits/8]."""
    squeezed: torch.Tensor
    if bits == 2:
        low, high = codes.view(2, -1)
        squeezed = low | (high << 2)
        return squeezed
    size = codes.numel() // 4
    squeezed = (codes[: 3 * size] << 1).view(3, -1)
    last = codes[3 * size :]
    for number, part in enumerate(squeezed):
        part |= (last >> number) & 0x11
    return squeezed.view(-1)


def _word(multiple: int) -> tuple[torch.dtype, int]:
    """The widest word whose bytes divide `multiple`, and the factor that repeats a mask in each
    of its bytes. torch shifts words of 8 bytes several times faster than bytes, and the masks
    drop what a shift carries from one byte into the next."""
    if multiple % 8 == 0:
        return torch.int64, 0x0101010101010101
    return (torch.int16, 0x0101) if multiple % 2 == 0 else (torch.uint8, 1)


def put_field(out: torch.Tensor, record: RecordFormat, name: str, tensor: torch.Tensor) -> None:
    """Write a field's bytes into a record."""
    field = record.layout.field(name)
    raw = tensor.contiguous().reshape(-1).view(torch.uint8)
    assert raw.numel() == field.size_bytes, f"{name}: {raw.numel()} != {field.size_bytes}"
    out[field.offset : field.offset + field.size_bytes] = raw


def take_field(record_bytes: torch.Tensor, record: RecordFormat, name: str) -> torch.Tensor:
    """A field's bytes inside a record, uint8."""
    field = record.layout.field(name)
    return record_bytes[field.offset : field.offset + field.size_bytes]
