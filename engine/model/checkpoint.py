"""A checkpoint in a folder: which tensors it holds, and their bytes.

Reads safetensors headers itself and tensor bytes with pread: nothing is memory-mapped, so that what
the process holds is what it asked for. Pickle is never opened. Knows nothing of models or experts.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.errors import CheckpointError, NotAModelError

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
}
INDEX_NAME = "model.safetensors.index.json"
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
_MAX_HEADER_BYTES = 100_000_000
_SAMPLE_BYTES = 65_536


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor's bytes lie. offset: absolute, in its file."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


class Checkpoint:
    """All tensors of a folder of safetensors files, by name.

    Raises NotAModelError or CheckpointError, each with what to try.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_description(folder)
        self.tensors: dict[str, TensorEntry] = {}
        self._headers: list[tuple[Path, bytes]] = []
        for file in _weight_files(folder):
            header = _read_header(file)
            self._headers.append((file, header))
            for entry in _parse_header(file, header):
                self.tensors[entry.name] = entry
        if not self.tensors:
            raise CheckpointError(f"{folder} holds no tensors: its safetensors files are empty")
        self.fingerprint = self._fingerprint()

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """Read a tensor (or a range of its first dimension) into fresh memory.

        rows: start and stop along dimension 0. Raises CheckpointError when bytes are missing.
        """
        entry = self.tensors[name]
        start, stop = (0, entry.shape[0]) if rows is None and entry.shape else (0, 1)
        if rows is not None:
            start, stop = rows.start, rows.stop
        shape = (stop - start, *entry.shape[1:]) if entry.shape else ()
        row_bytes = entry.size_bytes // entry.shape[0] if entry.shape else entry.size_bytes
        tensor = torch.empty(shape, dtype=entry.dtype)
        if tensor.numel():
            view = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
            _read_exactly(entry.file, entry.offset + start * row_bytes, view)
        return tensor

    def read_bytes(self, entry: TensorEntry) -> torch.Tensor:
        """The bytes of an entry (which may be one expert's share of a tensor), uint8."""
        tensor = torch.empty(entry.size_bytes, dtype=torch.uint8)
        _read_exactly(entry.file, entry.offset, memoryview(tensor.numpy()))  # type: ignore[arg-type]
        return tensor

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for file, header in self._headers:
            digest.update(header)
            with file.open("rb") as stream:
                size = file.stat().st_size
                digest.update(str(size).encode())
                for position in (len(header) + 8, size // 2, max(0, size - _SAMPLE_BYTES)):
                    stream.seek(position)
                    digest.update(stream.read(_SAMPLE_BYTES))
        return digest.hexdigest()[:32]


def indexed_files(folder: Path) -> list[str] | None:
    """The weight files that a folder's index names, sorted; None where it has no index.

    Raises CheckpointError for an index that cannot be read or that points outside its folder.
    """
    index = folder / INDEX_NAME
    if not index.is_file():
        return None
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError):
        raise CheckpointError(f"{index} is no safetensors index: copy it again") from None
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise CheckpointError(f"{index} points outside its folder: {outside[0]}")
    return names


def read_description(folder: Path) -> dict[str, Any]:
    """config.json as it stands; NotAModelError or CheckpointError where there is none."""
    path = folder / "config.json"
    if not path.is_file():
        raise NotAModelError(
            f"{folder} is no model: it has no config.json; give the folder that from_pretrained "
            "would load"
        )
    try:
        config = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}): copy it again") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise NotAModelError(f"{path} names no model_type: it is no transformers model")
    return config


def _weight_files(folder: Path) -> list[Path]:
    names = indexed_files(folder)
    if names is not None:
        files = [folder / name for name in names]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise CheckpointError(
                f"{folder} lacks {len(missing)} of {len(files)} weight files, first {missing[0]}: "
                "finish the download"
            )
        return files
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    pickles = [path.name for pattern in _PICKLES for path in folder.glob(pattern)]
    if pickles:
        raise CheckpointError(
            f"{folder} holds pickle weights ({pickles[0]}), which can run code and are refused: "
            "convert the checkpoint to safetensors"
        )
    raise CheckpointError(f"{folder} has a config.json but no *.safetensors weights")


def _read_header(file: Path) -> bytes:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little") if size >= 8 else -1
        if not 0 < length <= min(_MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(f"{file} is no safetensors file or is truncated: copy it again")
        return stream.read(length)


def _parse_header(file: Path, header: bytes) -> Iterator[TensorEntry]:
    data_start = len(header) + 8
    data_bytes = file.stat().st_size - data_start
    try:
        entries = json.loads(header)
        for name, entry in entries.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
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


def _read_exactly(file: Path, offset: int, view: memoryview) -> None:
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
