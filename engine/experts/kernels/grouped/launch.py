"""Launches that compute the chosen experts of a layer together: one for gate and up with the
activation, one for down, one for the sum.

Letters: T tokens, K chosen experts, P = T x K, E experts, D hidden, F expert width, N output rows
of a matrix.

Records lie in slots of one arena, of whatever sizes: an expert is addressed by the byte offset of
its record. Which rows an expert has is found on the device, so that nothing is read back.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

import torch

from engine.experts.encoding.codec import RecordFormat
from engine.experts.kernels.activations import rounded_limit
from engine.layout.prequantized import MXFP4_GROUP
from engine.layout.record import Part
from engine.native.values import Gate
from engine.types import Bits

Kind = Literal["sixteen", "int8", "int4", "int3", "int2", "mxfp4"]
GROUPED_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

_KINDS: Mapping[Bits, Kind] = {16: "sixteen", 8: "int8", 4: "int4", 3: "int3", 2: "int2"}
_MOST_ELEMENTS = 1 << 31  # of a matrix: places inside it are counted in 32 bits
_SEARCHED_PAIRS = 128  # up to this many pairs every tile searches its rows, beyond they are sorted
_LEAST_TILE_ROWS = 16  # the smallest tile of tensor cores
# By bytes of an activation: rows of a tile at most, outputs of a tile, columns of a step at most.
# docs/lab/2026-11-30-grouped-launches.md has the registers that these take.
_MOST_TILE_ROWS = {2: 64, 4: 16}
_TILE_OUTPUTS = {2: 64, 4: 32}
_MOST_STEP = {2: 64, 4: 32}
_COMBINED_COLUMNS = 512
_NO_GATE = Gate(-1, 0, 0, 0.0, 0.0)  # the product itself
_WIDE_TILE = 64 * 64  # from here on eight warps share a tile: four would spill


@dataclass(frozen=True)
class GroupedMatrix:
    """How one matrix lies in each record.

    codes, scales, bias: where they begin, and strides of rows (and of columns at 16 bits), in
    numbers of their own size: 16-bit weights or bytes of codes, bf16 scales (mxfp4: bytes), biases
    of 16 bits. bias: None without one.
    """

    kind: Kind
    rows: int
    columns: int
    group: int
    row_stride: int
    column_stride: int
    scale_stride: int
    codes: int
    scales: int
    bias: int | None

    @classmethod
    def of(cls, record: RecordFormat, name: str) -> Self | None:
        """The matrix of this name; None if no program reads it as it lies."""
        part = next(part for part in record.parts if part.name == name)
        bits, rows, columns = record.layout.bits, part.rows, part.columns
        codes = record.layout.field(name).offset
        bias = _bias(record, name)
        if rows * columns >= _MOST_ELEMENTS:
            return None
        if record.prequantized is not None:
            if record.prequantized.name != "mxfp4" or columns % MXFP4_GROUP:
                return None
            scales = record.layout.field(f"{name}.scales").offset
            strides = columns // 2, 1, columns // MXFP4_GROUP
            return cls("mxfp4", rows, columns, MXFP4_GROUP, *strides, codes, scales, bias)
        if bits == 16:
            strides = (1, rows, 0) if part.transposed else (columns, 1, 0)
            return cls("sixteen", rows, columns, 0, *strides, codes // 2, 0, bias)
        scales = record.layout.field(f"{name}.scales").offset // 2
        if bits == 8:
            return cls("int8", rows, columns, 0, columns, 1, 1, codes, scales, bias)
        group = record.layout.group_size
        if record.code_layout != "plain" or group < 16 or group & (group - 1) or columns % group:
            return None
        strides = columns * bits // 8, 1, columns // group * 2
        return cls(_KINDS[bits], rows, columns, group, *strides, codes, scales, bias)


@dataclass(frozen=True)
class GroupedFormat:
    """Records of one precision: both matrices, the activation with its limit as activations hold
    it, and the dtype of 16-bit parts."""

    up: GroupedMatrix
    down: GroupedMatrix
    gate: Gate
    sixteen: torch.dtype

    @classmethod
    def of(cls, record: RecordFormat, gate: Gate, dtype: torch.dtype) -> Self | None:
        """The format of these records; None if no program reads them. dtype: of activations."""
        names = {part.name for part in record.parts}
        up = GroupedMatrix.of(record, "gate_up_proj" if "gate_up_proj" in names else "up_proj")
        down = GroupedMatrix.of(record, "down_proj")
        if up is None or down is None:
            return None
        limit = rounded_limit(gate.limit, dtype)
        own = Gate(gate.form, gate.activation, gate.interleaved, gate.alpha, limit)
        return cls(up, down, own, record.sixteen)


@dataclass(frozen=True)
class LayerRows:
    """The rows of every expert in a layer.

    index: int64 [T, K], contiguous; a number from `entries` on means no expert. order [P], starts
    [entries + 1]: the places sorted by expert, if there are many; else both are the index, which
    every tile searches.
    """

    index: torch.Tensor
    order: torch.Tensor
    starts: torch.Tensor
    entries: int

    @classmethod
    def of(cls, index: torch.Tensor, bounds: torch.Tensor) -> Self:
        """bounds: int64, 0 to the number of entries, on the index's device."""
        flat = index.view(-1)
        entries = bounds.shape[0] - 1
        if flat.shape[0] <= _SEARCHED_PAIRS:
            return cls(index, index, index, entries)
        experts, order = torch.sort(flat)
        return cls(index, order, torch.searchsorted(experts, bounds), entries)

    @property
    def is_sorted(self) -> bool:
        """Whether order and starts hold the rows."""
        return self.order is not self.index


def launch_experts(
    layout: GroupedFormat,
    arena: torch.Tensor,
    offsets: torch.Tensor,
    x: torch.Tensor,
    rows: LayerRows,
    out: torch.Tensor,
) -> None:
    """Compute the experts whose records begin at `offsets` for all of their rows, in two launches.

    arena: uint8, contiguous; offsets: int64 [entries], multiples of 64, -1 for what is not computed
    now; x [T, D], out [P, D], contiguous and of one dtype. Places of other experts are left as
    they are.
    """
    hidden = x.new_empty(out.shape[0], layout.down.columns)  # [P, F]
    arguments = layout, arena, offsets, rows
    _launch(layout.up, *arguments, x, hidden, rows.index.shape[1], layout.gate)
    _launch(layout.down, *arguments, hidden, out, 1, _NO_GATE)


def launch_sum(y: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """y [P, D] in routing order and weights [T, K] -> [T, D] in y's dtype, in one launch.

    Weights and weighted outputs are rounded to that dtype, then summed in float32 in routing order:
    the same bits as on the CPU, and none depends on the order of arrival.
    """
    from engine.experts.kernels.grouped.program import combine_program

    tokens, chosen = weights.shape
    columns = y.shape[1]
    out = y.new_empty(tokens, columns)  # [T, D]
    combine_program[(tokens, _tiles(columns, _COMBINED_COLUMNS))](
        y,
        weights.contiguous(),
        out,
        chosen,
        columns,
        tile_columns=_COMBINED_COLUMNS,
        enable_fp_fusion=False,
    )
    return out


def step_of(kind: Kind, group: int, itemsize: int) -> int:
    """Columns of a step, a divisor of the group. itemsize: of activations."""
    most = _MOST_STEP[itemsize]
    if kind in ("int3", "int2") or (kind == "mxfp4" and itemsize == 4):
        most //= 2  # wider ones spill on sm_120
    return min(group or most, most)


def warps_of(tile_rows: int, tile_outputs: int) -> int:
    """Warps of 32 threads that share a tile."""
    return 8 if tile_rows * tile_outputs >= _WIDE_TILE else 4


def interpreted() -> bool:
    """Whether triton's interpreter runs the programs, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _launch(
    matrix: GroupedMatrix,
    layout: GroupedFormat,
    arena: torch.Tensor,
    offsets: torch.Tensor,
    rows: LayerRows,
    x: torch.Tensor,
    out: torch.Tensor,
    chosen: int,
    gate: Gate,
) -> None:
    """x [P / chosen, columns] times the matrix of every expert, through `gate`, to out [P, N]."""
    from engine.experts.kernels.grouped.program import matrix_program

    assert x.is_contiguous()
    assert out.is_contiguous()
    pairs, width = out.shape
    size = x.itemsize
    tiling = _tiling(pairs, rows, size)
    outputs = _TILE_OUTPUTS[size]
    matrix_program[(tiling.tiles, _tiles(width, outputs))](
        x,
        arena.view(_code_dtype(matrix, layout)),
        arena if matrix.kind == "mxfp4" else arena.view(torch.bfloat16),
        arena.view(layout.sixteen),
        rows.index,
        rows.order,
        rows.starts,
        offsets,
        out,
        pairs,
        chosen,
        rows.entries,
        width,
        matrix.columns,
        matrix.row_stride,
        matrix.column_stride,
        matrix.scale_stride,
        matrix.codes,
        matrix.scales,
        matrix.bias or 0,
        kind=matrix.kind,
        group=matrix.group,
        has_bias=matrix.bias is not None,
        is_sorted=rows.is_sorted,
        places=tiling.places,
        tile_rows=tiling.tile_rows,
        tile_outputs=outputs,
        step=step_of(matrix.kind, matrix.group, size),
        # The interpreter would multiply bf16 as the integers that hold its bits.
        widen=interpreted(),
        num_warps=warps_of(tiling.tile_rows, outputs),
        enable_fp_fusion=True,
        form=gate.form,
        activation=gate.activation,
        interleaved=bool(gate.interleaved),
        alpha=gate.alpha,
        limit=gate.limit,
    )


@dataclass(frozen=True)
class _Tiling:
    """Tiles of the grid, rows of a tile, and the power of two that holds all that a tile looks
    through to find its rows."""

    tiles: int
    tile_rows: int
    places: int


def _tiling(pairs: int, rows: LayerRows, size: int) -> _Tiling:
    if not rows.is_sorted:
        return _Tiling(pairs, _LEAST_TILE_ROWS, max(16, _power_of_two(pairs)))
    average = _power_of_two(max(1, pairs // rows.entries))
    tile_rows = min(max(average, _LEAST_TILE_ROWS), _MOST_TILE_ROWS[size])
    # the most tiles that the rows can fill, however they are distributed over the experts
    tiles = (pairs + min(rows.entries, pairs) * (tile_rows - 1)) // tile_rows
    return _Tiling(tiles, tile_rows, _power_of_two(rows.entries))


def _code_dtype(matrix: GroupedMatrix, layout: GroupedFormat) -> torch.dtype:
    if matrix.kind == "sixteen":
        return layout.sixteen
    return torch.int8 if matrix.kind == "int8" else torch.uint8


def _bias(record: RecordFormat, name: str) -> int | None:
    """Where the bias of a matrix begins, in numbers of 16 bits."""
    found: list[Part] = [part for part in record.parts if part.name == f"{name}_bias"]
    return record.layout.field(found[0].name).offset // 2 if found else None


def _tiles(width: int, tile: int) -> int:
    return (width + tile - 1) // tile


def _power_of_two(number: int) -> int:
    """The smallest one that is at least the number."""
    return 1 << (number - 1).bit_length()
