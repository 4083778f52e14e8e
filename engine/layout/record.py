"""Layout of one expert's record at each precision: its parts and their offsets.

Pure arithmetic, no torch, so that the tuner can say what fits before anything runs.
Letters: N output rows, K input columns, g quantization group.

A record is contiguous: every part starts at a multiple of PART_ALIGN bytes and the whole is padded
to RECORD_ALIGN bytes, so that one record is one aligned read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from engine.types import BITS, Bits

PART_ALIGN = 64
RECORD_ALIGN = 4096
GROUP_CHOICES = (128, 64, 32, 16)

PartKind = Literal["matrix", "vector"]


@dataclass(frozen=True)
class Part:
    """One parameter of one expert.

    name: attribute on the experts module; shape: as the module stores it for one expert;
    transposed: stored [K, N] instead of [N, K].
    """

    name: str
    shape: tuple[int, ...]
    transposed: bool = False

    @property
    def kind(self) -> PartKind:
        """A matrix is quantized, a vector (bias) stays at 16 bits."""
        return "matrix" if len(self.shape) == 2 else "vector"

    @property
    def rows(self) -> int:
        """N, the output features."""
        return self.shape[1] if self.transposed else self.shape[0]

    @property
    def columns(self) -> int:
        """K, the input features."""
        return self.shape[0] if self.transposed else self.shape[1]

    @property
    def elements(self) -> int:
        """Number of elements."""
        total = 1
        for size in self.shape:
            total *= size
        return total


@dataclass(frozen=True)
class Field:
    """A byte range inside a record."""

    name: str
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class RecordLayout:
    """The fields of a record and their offsets. size_bytes includes the padding."""

    bits: Bits
    group_size: int
    fields: tuple[Field, ...]
    size_bytes: int

    def field(self, name: str) -> Field:
        """The field of this name; a KeyError is a bug."""
        for field in self.fields:
            if field.name == name:
                return field
        raise KeyError(name)


def resolve_group_size(parts: tuple[Part, ...], wanted: int) -> int:
    """The largest group of at most `wanted` that divides K of every matrix; 0 if none does."""
    columns = [part.columns for part in parts if part.kind == "matrix"]
    for group in GROUP_CHOICES:
        if group <= wanted and all(column % group == 0 for column in columns):
            return group
    return 0


def supported_bits(parts: tuple[Part, ...], wanted_group: int = 64) -> tuple[Bits, ...]:
    """The precisions that these shapes allow (8 bits is per row and needs no group)."""
    group = resolve_group_size(parts, wanted_group)
    return tuple(bits for bits in BITS if bits in (16, 8) or group > 0)


def record_layout(parts: tuple[Part, ...], bits: Bits, group_size: int) -> RecordLayout:
    """Lay out one record.

    Fields of a matrix: `<name>` (codes, or bf16/fp16 at 16 bits) and, below 16 bits,
    `<name>.scales` (8 bits: one per row; 4, 3 and 2 bits: scale and zero per group, interleaved).
    """
    sizes = [size for part in parts for size in _field_sizes(part, bits, group_size)]
    return lay_out(sizes, bits, group_size)


def lay_out(sizes: Sequence[tuple[str, int]], bits: Bits, group_size: int) -> RecordLayout:
    """Place fields of these names and sizes in bytes, in order, each aligned."""
    fields: list[Field] = []
    offset = 0
    for name, size in sizes:
        fields.append(Field(name, offset, size))
        offset = _align(offset + size, PART_ALIGN)
    return RecordLayout(bits, group_size, tuple(fields), _align(offset, RECORD_ALIGN))


def record_bytes_table(parts: tuple[Part, ...], wanted_group: int = 64) -> dict[int, int]:
    """Padded bytes of one record at every precision these shapes allow."""
    group = resolve_group_size(parts, wanted_group)
    return {
        bits: record_layout(parts, bits, group).size_bytes
        for bits in supported_bits(parts, wanted_group)
    }


def parts_to_json(parts: tuple[Part, ...]) -> list[dict[str, Any]]:
    """JSON-ready list of parts."""
    return [{"name": p.name, "shape": list(p.shape), "transposed": p.transposed} for p in parts]


def parts_from_json(data: list[dict[str, Any]]) -> tuple[Part, ...]:
    """Inverse of parts_to_json."""
    return tuple(Part(d["name"], tuple(d["shape"]), bool(d["transposed"])) for d in data)


def _field_sizes(part: Part, bits: Bits, group_size: int) -> list[tuple[str, int]]:
    if part.kind == "vector" or bits == 16:
        return [(part.name, part.elements * 2)]
    scales = f"{part.name}.scales"
    if bits == 8:
        return [(part.name, part.elements), (scales, part.rows * 2)]
    groups = part.columns // group_size
    return [(part.name, part.elements * bits // 8), (scales, part.rows * groups * 4)]


def _align(offset: int, alignment: int) -> int:
    return (offset + alignment - 1) // alignment * alignment
