"""int4 products with experts in slots by triton: all experts of a layer in one launch.

Letters: T tokens sorted by expert, E experts, N output rows, K input columns, G groups along K.

Codes are nibble pairs along K (`plain`), so that the host can read the same records. Needs the
extra `gpu`; triton is imported only when a product runs. With TRITON_INTERPRET=1 it runs on the
CPU, for tests.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass

import torch

from engine.experts.encoding.codec import (
    CodeLayout,
    MatrixView,
    RecordFormat,
    pack_plain,
    unpack_codes,
    unpack_plain,
)
from engine.experts.encoding.quantization import Quantized, dequantize
from engine.experts.kernels.base import MatrixShape
from engine.layout.record import Part
from engine.types import Bits

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_TILE_ROWS = 64
_LEAST_TILE_TOKENS = 16  # the smallest tile of tensor cores
# By bytes of an activation: maximum tokens per tile and columns per step. Compiled for sm_80 these
# take 166 and 248 of 255 registers; wider steps spill.
_MOST_TILE_TOKENS = {2: 64, 4: 16}
_MOST_STEP_COLUMNS = {2: 64, 4: 32}


@dataclass(frozen=True)
class SlotMatrix:
    """The location of a matrix of 4-bit codes in each slot of an arena of equal slots.

    codes_offset, scales_offset: bytes from the start of a slot to the codes (uint8 [N, K/2], nibble
    pairs along K) and to the scales (bf16 [N, G, 2]).
    """

    shape: MatrixShape
    slot_bytes: int
    codes_offset: int
    scales_offset: int

    @classmethod
    def of(cls, record: RecordFormat, part: Part, slot_bytes: int) -> SlotMatrix:
        """The location of one matrix of a 4-bit record in slots of this size."""
        assert record.layout.bits == 4
        assert record.code_layout == "plain"
        return cls(
            MatrixShape(part.rows, part.columns, record.layout.group_size),
            slot_bytes,
            record.layout.field(part.name).offset,
            record.layout.field(f"{part.name}.scales").offset,
        )


def grouped_int4(
    x: torch.Tensor,
    arena: torch.Tensor,
    matrix: SlotMatrix,
    slots: torch.Tensor,
    row_starts: torch.Tensor,
) -> torch.Tensor:
    """Each row of x [T, K] times its expert's matrix -> [T, N] in x's dtype, summed in float32.

    x: contiguous, its rows sorted by expert; arena: uint8, all slots; slots: int64 [E], the slot of
    each expert; row_starts: int64 [E + 1], ascending from 0 to T: expert e has the rows
    row_starts[e] to row_starts[e + 1]. All on one device; nothing is read back to the host.
    """
    return _launch(
        x,
        arena[matrix.codes_offset :],
        arena[matrix.scales_offset :].view(torch.bfloat16),
        matrix.shape,
        matrix.slot_bytes,
        slots,
        row_starts,
    )


def grouped_reference(
    x: torch.Tensor,
    arena: torch.Tensor,
    matrix: SlotMatrix,
    slots: torch.Tensor,
    row_starts: torch.Tensor,
) -> torch.Tensor:
    """The oracle of grouped_int4, in float32 [T, N], expert by expert in plain torch."""
    rows, columns, group = matrix.shape.rows, matrix.shape.columns, matrix.shape.group_size
    bounds: list[int] = row_starts.tolist()
    out = x.new_zeros(x.shape[0], rows, dtype=torch.float32)
    for number, slot in enumerate(slots.tolist()):
        first, end = bounds[number : number + 2]
        start = slot * matrix.slot_bytes
        codes = arena[start + matrix.codes_offset :][: rows * columns // 2]
        scales = arena[start + matrix.scales_offset :][: columns // group * rows * 4]
        quantized = Quantized(
            unpack_codes(codes.view(rows, columns // 2), columns, "plain"),  # [N, K]
            scales.view(torch.bfloat16)
            .view(rows, columns // group, 2)
            .transpose(0, 1),  # [G, N, 2]
        )
        out[first:end] = x[first:end].float() @ dequantize(quantized, 4, group).t()
    return out


class TritonInt4:
    """`grouped_int4` as a kernel: one expert at a time."""

    name = "triton_int4"
    reads: tuple[Bits, ...] = (4, 3, 2)
    code_layout: CodeLayout = "plain"
    tested = False

    def unavailable(self, device: torch.device) -> str | None:
        """Available with triton on CUDA, from compute capability 8.0 on; interpreted on the CPU
        too."""
        if device.type != "cuda" and not (device.type == "cpu" and _interpreted()):
            return f"it runs on CUDA, not on {device.type}"
        if importlib.util.find_spec("triton") is None:
            return f"on {device.type} it needs the package triton: install the extra gpu"
        if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
            return "it needs compute capability 8.0 or newer"
        return None

    def refuses(self, shape: MatrixShape, dtype: torch.dtype) -> str | None:
        """Takes any number of rows; columns in whole groups, of a power of two of at least 16."""
        group = shape.group_size
        if dtype not in _DTYPES:
            return f"it takes floating activations of 16 or 32 bits, not {_name(dtype)}"
        if group < 16 or group & (group - 1):
            return f"groups of {group} are no power of two of at least 16"
        if shape.columns % group:
            return f"{shape.columns} columns are no multiple of the group {group}"
        if shape.rows * shape.columns >= 1 << 32:
            return f"{shape.rows} x {shape.columns} codes are more than 2 GiB"
        return None

    def product(
        self, x: torch.Tensor, view: MatrixView, bits: Bits, group_size: int
    ) -> torch.Tensor:
        """x [T, K] -> [T, N]."""
        assert view.scales is not None
        codes = view.codes if bits == 4 else pack_plain(unpack_plain(view.codes, bits), 4)
        scales = view.scales.transpose(0, 1)  # [N, G, 2]
        shape = MatrixShape(view.part.rows, view.part.columns, group_size)
        tokens = x.shape[0]
        row_starts = torch.arange(0, 2 * tokens, max(tokens, 1), device=x.device)  # [0, T]
        slots = row_starts[:1]  # slot 0 and first row 0 share one tensor: one launch less
        return _launch(x, codes, scales, shape, 0, slots, row_starts)


def _launch(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    shape: MatrixShape,
    slot_bytes: int,
    slots: torch.Tensor,
    row_starts: torch.Tensor,
) -> torch.Tensor:
    """codes, scales: starting at their place in slot 0. Returns [T, N]."""
    assert x.is_contiguous()
    assert codes.is_contiguous()
    assert scales.is_contiguous()
    assert x.shape[1] == shape.columns
    assert slot_bytes % 2 == 0  # scales are addressed in steps of two bytes
    tokens, experts = x.shape[0], slots.shape[0]
    out = x.new_empty(tokens, shape.rows)  # [T, N]
    if tokens == 0:
        return out
    from engine.experts.kernels.triton_program import grouped_int4_program

    tile_tokens = _tile_tokens(tokens, experts, _MOST_TILE_TOKENS[x.itemsize])
    grid = (
        _most_tiles(tokens, experts, tile_tokens),
        (shape.rows + _TILE_ROWS - 1) // _TILE_ROWS,
    )
    grouped_int4_program[grid](
        x,
        codes,
        scales,
        slots,
        row_starts,
        out,
        experts,
        shape.rows,
        shape.columns,
        slot_bytes,
        group_size=shape.group_size,
        expert_places=1 << (experts - 1).bit_length(),
        tile_tokens=tile_tokens,
        tile_rows=_TILE_ROWS,
        step_columns=min(shape.group_size, _MOST_STEP_COLUMNS[x.itemsize]),
        # The interpreter would multiply bf16 as the integers that hold its bits.
        widen=_interpreted(),
        enable_fp_fusion=True,
    )
    return out


def _tile_tokens(tokens: int, experts: int, most: int) -> int:
    """Tokens per tile: the power of two at or above an expert's average, within bounds."""
    average = max(1, tokens // experts)
    return min(max(1 << (average - 1).bit_length(), _LEAST_TILE_TOKENS), most)


def _most_tiles(tokens: int, experts: int, tile_tokens: int) -> int:
    """The most tiles that T tokens can fill, however they are distributed over the experts."""
    return (tokens + min(experts, tokens) * (tile_tokens - 1)) // tile_tokens


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
