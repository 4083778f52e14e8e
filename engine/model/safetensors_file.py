"""One safetensors file: its tensors, their byte ranges, and reading them.

Headers are parsed and bytes read with pread: nothing is memory-mapped, so that the process holds
only what it requested.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.errors import CheckpointError
from engine.inputs.bounds import parse_json
from engine.model.weight_files import LFS_POINTER, lfs_pointer

_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}
_MAX_HEADER_BYTES = 32 << 20  # of some 300,000 tensors; the largest known have 40,000
_MAX_RANK = 16


@dataclass(frozen=True)
class TensorEntry:
    """The byte range of one tensor. offset: absolute, in its file."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


def read_header(file: Path) -> bytes:
    """The JSON header as bytes; raises CheckpointError if there is none."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        first = stream.read(len(LFS_POINTER))
        if first == LFS_POINTER:
            raise lfs_pointer(file)
        stream.seek(8)
        length = int.from_bytes(first[:8], "little") if size >= 8 else -1
        if not 0 < length <= min(_MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(f"{file} is no safetensors file or is truncated: copy it again")
        return stream.read(length)


def parse_header(file: Path, header: bytes) -> list[TensorEntry]:
    """The tensors of a file; raises CheckpointError for a corrupt header or a truncated file.

    As safetensors does, it refuses tensors that overlap or leave gaps, and bytes behind the last.
    """
    data_start = len(header) + 8
    try:
        described = parse_json(header)
        if not isinstance(described, dict):
            raise TypeError("it is no object of tensors")
        found = [
            _entry(file, name, entry, data_start)
            for name, entry in described.items()
            if name != "__metadata__"
        ]
        end = data_start
        for one in sorted(found, key=lambda entry: (entry.offset, entry.size_bytes)):
            if one.offset != end:
                raise ValueError(f"{one.name:.80} begins at byte {one.offset}, not at {end}")
            end += one.size_bytes
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{file} has a corrupt safetensors header ({error}): copy or download it again"
        ) from None
    _check_end(file, end)
    return found


def _entry(file: Path, name: str, described: Any, data_start: int) -> TensorEntry:
    """One tensor of a header. Raises CheckpointError for a dtype that is not read, ValueError or
    TypeError for what no header holds."""
    if not isinstance(described, dict) or not isinstance(described.get("dtype"), str):
        raise TypeError(f"{name:.80}: it needs dtype, shape and data_offsets")
    if described["dtype"] not in _DTYPES:
        raise CheckpointError(
            f"{file}: {name} has dtype {described['dtype']}, which this version does not read; "
            f"it reads {', '.join(_DTYPES)}"
        )
    dtype = _DTYPES[described["dtype"]]
    shape = _sizes(name, "shape", described.get("shape"), _MAX_RANK)
    offsets = _sizes(name, "data_offsets", described.get("data_offsets"), 2)
    begin, end = offsets if len(offsets) == 2 else (0, -1)
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name:.80}: data_offsets {list(offsets)} do not hold shape {shape}")
    return TensorEntry(name, file, dtype, shape, data_start + begin, end - begin)


def _sizes(name: str, key: str, given: Any, most: int) -> tuple[int, ...]:
    """A list of at most so many sizes. type: True is no size, though Python counts it as 1."""
    if not isinstance(given, list) or len(given) > most:
        raise ValueError(f"{name:.80}: {key} must be a list of at most {most} whole numbers")
    for size in given:
        if type(size) is not int or not 0 <= size < 1 << 63:
            raise ValueError(
                f"{name:.80}: {key} holds {size!r:.40}, no whole number from 0 to 2^63"
            )
    return tuple(given)


def _check_end(file: Path, end: int) -> None:
    """Refuse a file that ends before its last tensor does, or goes on behind it."""
    more = file.stat().st_size - end
    if more < 0:
        raise CheckpointError(
            f"{file} is truncated: its tensors end {-more} bytes behind the end of the file; copy "
            "or download it again"
        )
    if more > 0:
        raise CheckpointError(
            f"{file} has {more} bytes behind its last tensor, as a download that was joined wrongly"
            " does: download it again"
        )


def read_bytes(file: Path, offset: int, size_bytes: int) -> torch.Tensor:
    """Bytes of a file in new memory, uint8, not kept in the page cache.

    Raises CheckpointError if bytes are missing.
    """
    tensor = torch.empty(size_bytes, dtype=torch.uint8)
    read_into(memoryview(tensor.numpy()), file, offset)  # type: ignore[arg-type]
    return tensor


def read_into(memory: memoryview, file: Path, offset: int) -> None:
    """Fill memory with the bytes of a file, not kept in the page cache.

    Raises CheckpointError if bytes are missing.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        done = 0
        while done < len(memory):
            count = os.preadv(descriptor, [memory[done : done + (64 << 20)]], offset + done)
            if count == 0:
                raise CheckpointError(f"{file} ends early: copy or download it again")
            done += count
        os.posix_fadvise(descriptor, offset, len(memory), os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
