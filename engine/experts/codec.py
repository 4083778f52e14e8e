"""One expert between tensors and record bytes, and typed views into a record.

Letters: N output rows, K input columns, G groups along K.

The 4-bit codes of a matrix are stored either in torch's own packed layout for its CPU kernel
(`torch_int4`, which depends on the CPU's capability) or as plain nibble pairs along K. 2-bit codes
are the same nibble bytes, two of them squeezed into one: the low half of the bytes in the low
nibble, the high half in the high one, so that expanding is a few byte operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from engine.experts.quantization import Quantized, quantize
from engine.published import PublishedFormat
from engine.records import Part, RecordLayout

CodeLayout = Literal["torch_int4", "plain"]
_BLOCK_ROWS = 64  # rows that torch's AVX-512 layout interleaves


@dataclass(frozen=True)
class RecordFormat:
    """Everything that decides the bytes of a record.

    sixteen: dtype of 16-bit parts and biases; code_layout: how 4- and 2-bit codes are arranged;
    published: where the record keeps the checkpoint's own codes (engine.experts.native).
    """

    parts: tuple[Part, ...]
    layout: RecordLayout
    sixteen: torch.dtype
    code_layout: CodeLayout
    published: PublishedFormat | None = None

    @property
    def size_bytes(self) -> int:
        """Padded bytes of one record."""
        return self.layout.size_bytes


@dataclass(frozen=True)
class MatrixView:
    """A matrix inside a record: codes (or 16-bit weights) and scales, views of the slot's bytes."""

    part: Part
    codes: torch.Tensor
    scales: torch.Tensor | None


def encode(tensors: Mapping[str, torch.Tensor], record: RecordFormat) -> torch.Tensor:
    """Pack one expert. tensors: as the module stores them. Returns uint8 [record bytes]."""
    out = torch.zeros(record.size_bytes, dtype=torch.uint8)
    for part in record.parts:
        tensor = tensors[part.name]
        if part.kind == "vector" or record.layout.bits == 16:
            put_field(out, record, part.name, tensor.to(record.sixteen))
            continue
        weight = tensor.t() if part.transposed else tensor  # [N, K]
        quantized = quantize(weight, record.layout.bits, record.layout.group_size)
        put_field(out, record, part.name, _pack_codes(quantized, record))
        put_field(out, record, f"{part.name}.scales", quantized.scales)
    return out


def matrix_view(record_bytes: torch.Tensor, record: RecordFormat, part: Part) -> MatrixView:
    """Typed views of one matrix. record_bytes: uint8 [record bytes], wherever it lies."""
    raw = take_field(record_bytes, record, part.name)
    bits, group = record.layout.bits, record.layout.group_size
    if bits == 16:
        return MatrixView(part, raw.view(record.sixteen).view(part.shape), None)
    scales = take_field(record_bytes, record, f"{part.name}.scales").view(torch.bfloat16)
    if bits == 8:
        return MatrixView(part, raw.view(torch.int8).view(part.rows, part.columns), scales)
    scales = scales.view(part.columns // group, part.rows, 2)  # [G, N, 2]
    codes = raw.view(part.rows, part.columns // 2) if bits == 4 else raw
    return MatrixView(part, codes, scales)


def vector_view(record_bytes: torch.Tensor, record: RecordFormat, part: Part) -> torch.Tensor:
    """Typed view of a bias, [N]."""
    return take_field(record_bytes, record, part.name).view(record.sixteen)


def expand_two_bits(squeezed: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """2-bit bytes [N*K/4] to the 4-bit code bytes they came from, [N, K/2]."""
    half = squeezed.numel()
    out = torch.empty(2 * half, dtype=torch.uint8, device=squeezed.device)
    low, high = out[:half], out[half:]
    torch.bitwise_and(squeezed, 0x0F, out=low)
    torch.bitwise_right_shift(squeezed, 4, out=high)
    for part in (low, high):  # abcd (two 2-bit codes) -> 00ab00cd
        upper = torch.bitwise_left_shift(torch.bitwise_and(part, 0x0C), 2)
        part.bitwise_and_(0x03).bitwise_or_(upper)
    return out.view(rows, columns // 2)


def unpack_codes(codes: torch.Tensor, columns: int, code_layout: CodeLayout) -> torch.Tensor:
    """4-bit code bytes [N, K/2] to one code a byte, uint8 [N, K].

    The torch_int4 layout is known for AVX-512 and N a multiple of 64 (the kernel self-test checks
    it); other shapes must go through the kernel.
    """
    rows = codes.shape[0]
    if code_layout == "plain":
        return torch.stack((codes & 0x0F, codes >> 4), dim=-1).view(rows, columns)
    blocks = codes.reshape(rows // _BLOCK_ROWS, columns, _BLOCK_ROWS // 2)
    both = torch.cat((blocks & 0x0F, blocks >> 4), dim=-1)  # [N/64, K, 64]
    return both.transpose(1, 2).reshape(rows, columns)


def can_unpack(rows: int, code_layout: CodeLayout) -> bool:
    """Whether unpack_codes knows the arrangement for this many rows."""
    return code_layout == "plain" or rows % _BLOCK_ROWS == 0


def _pack_codes(quantized: Quantized, record: RecordFormat) -> torch.Tensor:
    codes = quantized.codes
    packed: torch.Tensor
    if record.layout.bits == 8:
        return codes
    if record.code_layout == "torch_int4":
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)
    else:
        packed = codes[:, 0::2] | (codes[:, 1::2] << 4)
    if record.layout.bits == 4:
        return packed
    flat = packed.reshape(-1)
    squeezed = (flat & 0x03) | ((flat >> 2) & 0x0C)
    half = squeezed.numel() // 2
    return squeezed[:half] | (squeezed[half:] << 4)


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
