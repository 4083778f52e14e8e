"""The non-expert weights at fewer bits: the format and the size of each matrix.

Pure arithmetic, no torch. Letters: N output rows, K input columns.

A matrix is cut into blocks of rows, each quantized like an expert's matrix, so that dequantizing
one of them (a head over a large vocabulary) needs little memory.
"""

from __future__ import annotations

from typing import NamedTuple

from engine.layout.record import Part, RecordLayout, record_layout, resolve_group_size
from engine.types import Bits

_BLOCK_ELEMENTS = 1 << 23
_BLOCK_ROWS = 64  # blocks hold a multiple of this, which the int4 kernels' layouts require


class NonExpertMatrix(NamedTuple):
    """A shape of the non-expert weights that may be quantized, and its number of occurrences."""

    rows: int
    columns: int
    occurrences: int


def non_expert_blocks(rows: int, columns: int, bits: Bits, wanted_group: int) -> list[RecordLayout]:
    """Layouts of a matrix's blocks of rows, in order; 8 bits if no group divides K."""
    group = resolve_group_size((Part("weight", (rows, columns)),), wanted_group)
    if bits != 8 and not group:
        bits = 8
    return [
        record_layout((Part("weight", (count, columns)),), bits, group)
        for count in block_rows(rows, columns)
    ]


def block_rows(rows: int, columns: int) -> list[int]:
    """Number of rows of each block of a matrix."""
    most = max(1, _BLOCK_ELEMENTS // columns // _BLOCK_ROWS) * _BLOCK_ROWS
    return [min(most, rows - start) for start in range(0, rows, most)]


def non_expert_matrix_bytes(matrix: NonExpertMatrix, bits: Bits, wanted_group: int) -> int:
    """Bytes of all matrices of this shape at these bits."""
    blocks = non_expert_blocks(matrix.rows, matrix.columns, bits, wanted_group)
    return matrix.occurrences * sum(block.size_bytes for block in blocks)
