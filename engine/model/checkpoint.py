"""A checkpoint in a folder: its tensors and their values.

Pre-quantized checkpoints look like any other: codes and their scales form one tensor under the name
that the model knows, dequantized when it is read; the codes can be read too. Pickle files are never
opened. Knows nothing of models or experts.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch

from engine.errors import CheckpointError, NotAModelError
from engine.model.codes import Codes
from engine.model.int4 import Int4Tensor
from engine.model.quantized import Prequantized, find_prequantized
from engine.model.safetensors_file import TensorEntry, parse_header, read_bytes, read_header
from engine.model.weight_files import (
    WeightMap,
    read_index,
    read_json,
    refuse_broken_link,
    weight_files,
)

_SAMPLE_BYTES = 65_536
# A folder around a model, and around a hub's snapshots.
_INSIDE = ("*/config.json", "snapshots/*/config.json", "models--*/snapshots/*/config.json")


class Checkpoint:
    """All tensors of a folder of safetensors files, by name.

    Raises NotAModelError or CheckpointError, each with what to try.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_description(folder)
        self.tensors: dict[str, TensorEntry] = {}
        self._headers: list[tuple[Path, bytes]] = []
        index = read_index(folder, self.config)
        for file in weight_files(folder, self.config):
            header = read_header(file)
            self._headers.append((file, header))
            for entry in parse_header(file, header):
                self._add(entry, index)
        if not self.tensors:
            raise CheckpointError(f"{folder} holds no tensors: its safetensors files are empty")
        self.fingerprint = self._fingerprint()
        self.prequantized: dict[str, Prequantized] = {}
        for own in list(find_prequantized(folder, self.config, self.tensors)):
            self.prequantized[own.name] = own
            for entry in own.stored:
                del self.tensors[entry.name]
            self.tensors[own.name] = own.entry
        self._check_order()

    def _add(self, entry: TensorEntry, index: WeightMap | None) -> None:
        """Keep a tensor; of two of the same name the one in the file that the index names."""
        known = self.tensors.get(entry.name)
        named = index.get(entry.name) if index else None
        if known is not None and named not in (known.file.name, entry.file.name):
            raise CheckpointError(
                f"{self.folder}: {known.file.name} and {entry.file.name} both hold {entry.name}: "
                "move the file away that is not the model's"
            )
        if known is None or entry.file.name == named:
            self.tensors[entry.name] = entry

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """Read a tensor (or a range of its first dimension) into new memory.

        rows: start and stop along dimension 0. Pre-quantized tensors are returned as float32
        values. Raises CheckpointError if bytes are missing.
        """
        if name in self.prequantized:
            values = self.prequantized[name].values(self.read_codes(name, rows))
            return values if rows is None or values.ndim > 2 else values[rows]
        return self._read_entry(self.tensors[name], rows)

    def read_codes(self, name: str, rows: slice | None = None) -> Codes:
        """The codes and scales of a pre-quantized tensor."""
        return self.prequantized[name].read(self._read_entry, rows)

    def _check_order(self) -> None:
        """Refuse int4 codes whose columns lie in an order of their own, by the first of them; the
        others are looked at when they are read."""
        for own in self.prequantized.values():
            if isinstance(own, Int4Tensor) and own.names_groups:
                own.check_first(self._read_entry)
                return

    def _read_entry(self, entry: TensorEntry, rows: slice | None) -> torch.Tensor:
        start, stop = (0, entry.shape[0]) if rows is None and entry.shape else (0, 1)
        if rows is not None:
            start, stop = rows.start, rows.stop
            if not entry.shape or stop > entry.shape[0]:  # its neighbours' bytes would be read
                raise CheckpointError(
                    f"{entry.name} has shape {entry.shape}, and its part {stop - 1} is asked for: "
                    "config.json belongs to other weights, or the download is incomplete"
                )
        shape = (stop - start, *entry.shape[1:]) if entry.shape else ()
        row_bytes = math.prod(entry.shape[1:]) * entry.dtype.itemsize
        size = (stop - start) * row_bytes if entry.shape else row_bytes
        raw = read_bytes(entry.file, entry.offset + start * row_bytes, size)
        return raw.view(entry.dtype).view(shape)

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


def read_description(folder: Path) -> dict[str, Any]:
    """The parsed config.json; raises NotAModelError if it is missing or CheckpointError if
    unreadable."""
    path = folder / "config.json"
    refuse_broken_link(path)
    if not path.is_file():
        inside = [file.parent for depth in _INSIDE for file in sorted(folder.glob(depth))]
        advice = f"{inside[0]} has one: give that" if inside else "give the folder that has it"
        raise NotAModelError(f"{folder} is no model: it has no config.json; {advice}")
    config = read_json(path)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise NotAModelError(f"{path} names no model_type: it is no transformers model")
    return config
