"""One safetensors file: its tensors, their byte ranges, and reading them.

Headers are parsed and bytes read with pread: nothing is memory-mapped, so that the process holds
only what it requested.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.errors import CheckpointError
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
_MAX_HEADER_BYTES = 100_000_000


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


def parse_header(file: Path, header: bytes) -> Iterator[TensorEntry]:
    """The tensors of a file; raises CheckpointError for a corrupt header or a truncated file."""
    data_start = len(header) + 8
    data_bytes = file.stat().st_size - data_start
    try:
        entries = json.loads(header)
        for name, entry in entries.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            if entry["dtype"] not in _DTYPES:
                raise CheckpointError(
                    f"{file}: {name} has dtype {entry['dtype']}, which this version does not read; "
                    f"it reads {', '.join(_DTYPES)}"
                )
            dtype = _DTYPES[entry["dtype"]]
            shape = tuple(int(size) for size in entry["shape"])
            if end - begin != math.prod(shape) * dtype.itemsize or begin < 0:
                raise ValueError(f"{name}: {end - begin} bytes do not hold {shape}")
            if end > data_bytes:
                raise CheckpointError(
                    f"{file} is truncated: tensor {name} ends {end - data_bytes} bytes behind "
                    "the end of the file; copy or download it again"
                )
            yield TensorEntry(name, file, dtype, shape, data_start + begin, end - begin)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} has a corrupt safetensors header ({error})") from None


def read_bytes(file: Path, offset: int, size_bytes: int) -> torch.Tensor:
    """Bytes of a file in new memory, uint8, not kept in the page cache.

    Raises CheckpointError if bytes are missing.
    """
    tensor = torch.empty(size_bytes, dtype=torch.uint8)
    view = memoryview(tensor.numpy())  # type: ignore[arg-type]
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        done = 0
        while done < len(view):
            count = os.preadv(descriptor, [view[done : done + (64 << 20)]], offset + done)
            if count == 0:
                raise CheckpointError(f"{file} ends early: copy or download it again")
            done += count
        os.posix_fadvise(descriptor, offset, len(view), os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return tensor
