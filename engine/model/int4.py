"""int4 weights of GPTQ, AWQ and compressed-tensors: finding them and taking them apart.

Letters: N output rows, K input columns, G groups along K. A weight is (code - zero point) * scale.
Eight codes lie in an int32, the first in the lowest bits:

GPTQ (GPTQModel's TorchLinear): qweight [K/8, N] along K, qzeros [G, N/8] along N, scales [G, N],
g_idx [K] the group of each column. The first layout stores zero points less one, subtracted from
whole int32 words; adding it to them, as GPTQModel does, also takes back what was borrowed.
AWQ gemm (AutoAWQ's WQLinear_GEMM): qweight [K, N/8] and qzeros [G, N/8] along N, the eight columns
of a word in the order 0 2 4 6 1 3 5 7; scales [G, N].
compressed-tensors pack-quantized (its PackedQuantizationCompressor): weight_packed [N, K/8] along
K, weight_scale [N, G], weight_shape [2], and where it is not symmetric weight_zero_point [N/8, G]
along N (int8 [N, G] up to 0.9). Codes and zero points count from -8; in words 8 is added to them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from engine.errors import CheckpointError
from engine.model.codes import Codes, ReadEntry
from engine.model.int4_config import WHOLE_ROW, Int4Scheme
from engine.model.safetensors_file import TensorEntry

_EIGHT = 8  # codes in an int32; also the zero point of symmetric codes
_ONES = 0x11111111
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # of the eight columns of a word
_SCALE_BITS = -0x2000  # the upper 19 bits
_POINT_BITS = 0x1F
_SCALES = (torch.float16, torch.bfloat16, torch.float32)
_WHOLE = (torch.int32, torch.int64)
_AGAIN = "download the checkpoint again, or give the bf16 one"


@dataclass(frozen=True)
class Int4Tensor:
    """One matrix that is stored as int4 codes.

    entry: as the model knows it, [N, K] (its dtype and bytes are the codes'); zeros, order and
    sizes: the tensors of zero points, of each column's group and of the shape, None where there are
    none; symmetric: every zero point must be 8; block: rows and columns that share a scale.
    """

    name: str
    scheme: Int4Scheme
    codes: TensorEntry
    scales: TensorEntry
    zeros: TensorEntry | None
    order: TensorEntry | None
    sizes: TensorEntry | None
    entry: TensorEntry
    symmetric: bool
    block: tuple[int, int]
    format: Literal["int4"] = "int4"

    @property
    def stored(self) -> tuple[TensorEntry, ...]:
        """The checkpoint's tensors that this one is made of."""
        parts = (self.codes, self.scales, self.zeros, self.order, self.sizes)
        return tuple(part for part in parts if part is not None)

    @property
    def groups(self) -> int:
        """G."""
        return self.entry.shape[1] // self.block[1]

    def read(self, read: ReadEntry, rows: slice | None = None) -> Codes:
        """The codes with their scales and zero points. rows: none but all are read.

        Raises CheckpointError for what config.json denies, and for scales that are no numbers.
        """
        if self.order is not None:
            self._check_order(read(self.order, None))
        if self.sizes is not None:
            sizes = tuple(read(self.sizes, None).tolist())
            if sizes != self.entry.shape:
                raise _lies(self.sizes, f"says {sizes}, its codes are those of {self.entry.shape}")
        words = read(self.codes, None)
        scales = read(self.scales, None).float()
        by_row = self.scheme.method == "compressed-tensors"
        scales = scales if by_row else scales.t().contiguous()  # [N, G]
        if not bool(scales.isfinite().all()):
            raise _lies(self.scales, "holds values that are no numbers")
        codes = _awq_codes(words) if self.scheme.method == "awq" else _codes(words, by_row)
        return Codes(codes, scales, self._zeros(read, scales))

    def values(self, codes: Codes) -> torch.Tensor:
        """The values, float32 [N, K]."""
        assert codes.zeros is not None
        return int4_values(codes.codes, codes.scales, codes.zeros)

    @property
    def names_groups(self) -> bool:
        """Whether a tensor names the group of each column, of several."""
        return self.order is not None and self.groups > 1

    def check_first(self, read: ReadEntry) -> None:
        """Refuse columns in an order of their own before anything else is read. Zeros alone say
        nothing: descriptions of a model hold no data."""
        assert self.order is not None
        order = read(self.order, None)
        if bool(order.any()):
            self._check_order(order)

    def _check_order(self, order: torch.Tensor) -> None:
        """Raise CheckpointError unless each column lies in the group of its place."""
        assert self.order is not None
        if int(order.min()) < 0 or int(order.max()) >= self.groups:
            raise _lies(self.order, f"names groups other than 0 to {self.groups - 1}")
        if not torch.equal(order.long(), torch.arange(len(order)) // self.block[1]):
            raise CheckpointError(
                f"{self.order.name} puts columns into groups by an order of their own (desc_act, "
                "or actorder: group), which this version does not read: take a checkpoint made "
                "with desc_act false, or give the bf16 one"
            )

    def _zeros(self, read: ReadEntry, scales: torch.Tensor) -> torch.Tensor:
        """Zero points, uint8 [N, G]."""
        if self.zeros is None:
            return torch.full(scales.shape, _EIGHT, dtype=torch.uint8)
        words = read(self.zeros, None)
        if self.scheme.less_one:
            words = words + _ONES
        if words.dtype == torch.int8:
            found = words.short() + _EIGHT  # [N, G]
        elif self.scheme.method == "awq":
            found = _nibbles(words)[..., _AWQ_PLACES].flatten(-2).t()  # [N, G]
        elif self.scheme.method == "gptq":
            found = _nibbles(words).flatten(-2).t()  # [N, G]
        else:
            found = _nibbles(words.t()).flatten(-2).t()[: scales.shape[0]]  # [N, G]
        if int(found.min()) < 0 or int(found.max()) > 15:
            raise _lies(self.zeros, "holds zero points that 4 bits cannot have")
        if self.symmetric and bool((found != _EIGHT).any()):
            raise _lies(
                self.zeros,
                "holds other zero points than 8, but config.json says symmetric (if all are 9, its "
                "checkpoint_format should be gptq_v2)",
            )
        return found.to(torch.uint8).contiguous()


def find_int4(
    folder: Path, scheme: Int4Scheme, tensors: Mapping[str, TensorEntry]
) -> Iterator[Int4Tensor]:
    """Every matrix that is stored as int4 codes. Raises CheckpointError for parts that do not fit
    one another, or if there is none."""
    ending = ".weight_packed" if scheme.method == "compressed-tensors" else ".qweight"
    names = [name for name in tensors if name.endswith(ending)]
    if not names:
        raise CheckpointError(
            f"{folder}: config.json says {scheme.method}, but no tensor's name ends with {ending}: "
            "config.json belongs to other weights"
        )
    for name in names:
        base = name.removesuffix(ending)
        if f"{base}.weight" in tensors:
            raise CheckpointError(
                f"{folder} holds both {name} and {base}.weight: {_AGAIN}, since one of them is no "
                "part of the model"
            )
        yield _int4_tensor(base, scheme, tensors, tensors[name])


def int4_values(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """Values, float32 [N, K], of codes uint8 [N, K/2], scales float32 and zero points [N, G]."""
    numbers = torch.stack((codes & 0x0F, codes >> 4), dim=-1).flatten(-2)  # [N, K]
    grouped = numbers.view(*scales.shape, -1).float()  # [N, G, K/G]
    return grouped.sub_(zeros.float()[..., None]).mul_(scales[..., None]).flatten(-2)


def int4_words(scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """One int32 a group, as records and the native products hold it (sources/matrix.h): the upper
    19 bits of a float32 scale, which must be one of bf16 or fp16, and a zero point in the lowest 5.
    """
    words = scales.contiguous().view(torch.int32)
    assert not bool((words & ~_SCALE_BITS).any()), "scales of more bits than bf16 and fp16 have"
    return words | zeros.int()


def split_words(words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inverse of int4_words."""
    return (words & _SCALE_BITS).view(torch.float32), (words & _POINT_BITS).to(torch.uint8)


def _int4_tensor(
    base: str, scheme: Int4Scheme, tensors: Mapping[str, TensorEntry], codes: TensorEntry
) -> Int4Tensor:
    if codes.dtype != torch.int32 or len(codes.shape) != 2 or 0 in codes.shape:
        raise _lies(codes, f"has shape {codes.shape} and {codes.dtype}, not a matrix of int32")
    by_row = scheme.method == "compressed-tensors"
    first, last = codes.shape
    rows, columns = (first, last * _EIGHT) if by_row else (last, first * _EIGHT)
    if scheme.method == "awq":
        rows, columns = last * _EIGHT, first
    if columns % 2:
        raise _lies(codes, f"holds {columns} columns, an odd number")
    scales = _scales(base, tensors, codes, rows, by_row)
    groups = scales.shape[1 if by_row else 0]
    columns_of_group = columns // groups if groups and columns % groups == 0 else 0
    zeros = tensors.get(f"{base}.weight_zero_point" if by_row else f"{base}.qzeros")
    kinds = [
        symmetric
        for size, symmetric in scheme.groups
        if columns_of_group == (columns if size == WHOLE_ROW else size)
        and (not by_row or symmetric == (zeros is None))
    ]
    if not kinds:
        kind = ("without zero points" if zeros is None else "with zero points") if by_row else ""
        wanted = ", ".join(sorted(str(size) for size, _ in scheme.groups))
        raise _lies(
            scales,
            f"gives {columns} columns {groups} groups {kind}, which does not suit config.json's "
            f"groups of {wanted}",
        )
    _check_zeros(base, zeros, codes, rows, groups, by_row=by_row)
    order = tensors.get(f"{base}.weight_g_idx" if by_row else f"{base}.g_idx")
    if order is None and scheme.reordered:
        raise _lies(codes, "needs g_idx (config.json says desc_act), which is missing")
    sizes = tensors.get(f"{base}.weight_shape") if by_row else None
    _check_whole(order, (columns,))
    _check_whole(sizes, (2,))
    entry = TensorEntry(
        f"{base}.weight", codes.file, codes.dtype, (rows, columns), codes.offset, codes.size_bytes
    )
    symmetric = all(kinds)
    return Int4Tensor(
        entry.name, scheme, codes, scales, zeros, order, sizes, entry, symmetric,
        (1, columns_of_group),
    )  # fmt: skip


def _scales(
    base: str, tensors: Mapping[str, TensorEntry], codes: TensorEntry, rows: int, by_row: bool
) -> TensorEntry:
    name = f"{base}.weight_scale" if by_row else f"{base}.scales"
    scales = tensors.get(name)
    if scales is None:
        raise _lies(codes, f"needs {name}, which is missing")
    fits = len(scales.shape) == 2 and scales.shape[0 if by_row else 1] == rows
    if not fits or scales.dtype not in _SCALES:
        raise _lies(scales, f"has shape {scales.shape} and {scales.dtype}, its codes {rows} rows")
    return scales


def _check_zeros(
    base: str,
    zeros: TensorEntry | None,
    codes: TensorEntry,
    rows: int,
    groups: int,
    *,
    by_row: bool,
) -> None:
    if zeros is None and not by_row:
        raise _lies(codes, f"needs {base}.qzeros, which is missing")
    if zeros is None:
        return
    words = math.ceil(rows / _EIGHT) if by_row else rows // _EIGHT
    wanted = {torch.int32: (words, groups) if by_row else (groups, words)}
    if by_row:
        wanted[torch.int8] = (rows, groups)
    if wanted.get(zeros.dtype) != zeros.shape or (not by_row and rows % _EIGHT):
        raise _lies(
            zeros,
            f"has shape {zeros.shape} and {zeros.dtype}, {groups} groups of {rows} rows need "
            f"{wanted[torch.int32]} and int32",
        )


def _check_whole(entry: TensorEntry | None, shape: tuple[int, ...]) -> None:
    if entry is not None and (entry.shape != shape or entry.dtype not in _WHOLE):
        raise _lies(entry, f"has shape {entry.shape} and {entry.dtype}, not {shape} and int32")


def _lies(entry: TensorEntry, what: str) -> CheckpointError:
    return CheckpointError(f"{entry.name} {what}: {_AGAIN}")


def _codes(words: torch.Tensor, by_row: bool) -> torch.Tensor:
    """Code bytes [N, K/2] of words along K, [N, K/8] or, not by_row, [K/8, N]."""
    return (words if by_row else words.t()).contiguous().view(torch.uint8)


def _awq_codes(words: torch.Tensor) -> torch.Tensor:
    """Code bytes [N, K/2] of words [K, N/8]."""
    codes = _nibbles(words)[..., _AWQ_PLACES].flatten(-2).t()  # [N, K]
    return codes[:, 0::2] | (codes[:, 1::2] << 4)  # [N, K/2]


def _nibbles(words: torch.Tensor) -> torch.Tensor:
    """The eight codes of each word [.., W], the lowest first, uint8 [.., W, 8]."""
    pairs = words.contiguous().view(torch.uint8).view(*words.shape, 4)
    return torch.stack((pairs & 0x0F, pairs >> 4), dim=-1).flatten(-2)
