"""The disk tier: the location of every expert's record, and reading it.

At 16 bits, and for a pre-quantized checkpoint's own codes, an expert's tensors are read in place
from the checkpoint if their bytes, in order, are the record's fields; otherwise from a pack.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from engine.errors import PackError
from engine.experts.encoding.codec import RecordFormat
from engine.experts.tiers.direct_io import DiskReader, Extent
from engine.experts.tiers.pack import (
    Progress,
    encode_expert,
    ensure_pack,
    give_up_pack,
    record_checksum,
)
from engine.model.loader import LoadedModel
from engine.model.safetensors_file import read_bytes
from engine.types import DirectName, ExpertId


class ExpertStore:
    """Records on disk, read by several threads.

    extents: byte ranges of each expert; checksums: crc32 of each record if known. A record is
    verified the first time it is read.
    """

    def __init__(
        self,
        reader: DiskReader,
        extents: dict[ExpertId, tuple[Extent, ...]],
        checksums: dict[ExpertId, int],
        record: RecordFormat,
        *,
        in_place: bool,
    ) -> None:
        self._reader = reader
        self._extents = extents
        self._unverified = dict(checksums)
        self._pieces: dict[tuple[ExpertId, int], Sequence[Extent]] = {}
        self.bytes_read = 0
        self.record = record
        self.in_place = in_place
        self.direct = reader.direct

    @property
    def experts(self) -> Sequence[ExpertId]:
        """All experts, in order."""
        return list(self._extents)

    @property
    def all_bytes(self) -> int:
        """Padded bytes of all records together."""
        return len(self._extents) * self.record.size_bytes

    @property
    def files(self) -> Sequence[Path]:
        """The files that hold the records."""
        return self._reader.files

    def scratch_bytes(self) -> int:
        """Bytes of host scratch that one reading thread needs."""
        return self._reader.scratch_bytes(self.record.size_bytes)

    def chunks(self, expert: ExpertId, chunk_bytes: int) -> Sequence[Extent]:
        """The record in pieces of about chunk_bytes; in unsplit extents while it is unverified."""
        extents = self._extents[expert]
        if expert in self._unverified:
            return extents
        pieces = self._pieces.get((expert, chunk_bytes))
        if pieces is None:
            pieces = self._pieces[expert, chunk_bytes] = _cut(extents, chunk_bytes)
        return pieces

    def read(
        self, expert: ExpertId, piece: Extent, target: memoryview, scratch: memoryview
    ) -> None:
        """Read one piece into target (len = piece.size_bytes).

        Raises PackError if it is corrupt; its pack is then made again when it is opened next.
        """
        self._reader.read(piece, target, scratch)
        self.bytes_read += piece.size_bytes
        expected = self._unverified.get(expert)
        if expected is not None:
            if record_checksum(target) != expected:
                give_up_pack(self.files[0], expert)
                raise PackError(
                    f"the packed record of layer {expert.layer}, expert {expert.expert} in "
                    f"{self.files[0]} is corrupt: run again, which makes the pack again"
                )
            self._unverified.pop(expert, None)

    def close(self) -> None:
        """Close the files."""
        self._reader.close()


def open_store(
    model: LoadedModel,
    record: RecordFormat,
    cache_folder: Path,
    direct: DirectName,
    *,
    disk_budget_bytes: int = 0,
    progress: Progress | None = None,
) -> ExpertStore:
    """Open the records of this model in this format; packs them first if needed."""
    as_stored = record.layout.bits == 16 or record.prequantized is not None
    if as_stored and (extents := in_place_extents(model, record)) is not None:
        files = _files(model)
        return ExpertStore(DiskReader(files, direct), extents, {}, record, in_place=True)
    pack = ensure_pack(
        cache_folder, model, record, disk_budget_bytes=disk_budget_bytes, progress=progress
    )
    packed: dict[ExpertId, tuple[Extent, ...]] = {}
    checksums: dict[ExpertId, int] = {}
    for layer in model.layers:
        for index in range(layer.count):
            expert = ExpertId(layer.index, index)
            number = len(packed)
            packed[expert] = (Extent(0, number * pack.record_bytes, 0, pack.record_bytes),)
            checksums[expert] = pack.checksums[number]
    reader = DiskReader([pack.records], direct)
    return ExpertStore(reader, packed, checksums, record, in_place=False)


def in_place_extents(
    model: LoadedModel, record: RecordFormat
) -> dict[ExpertId, tuple[Extent, ...]] | None:
    """Byte ranges of every expert in the checkpoint; None if the stored bytes are not the record.

    They differ with another dtype, or a conversion that moves bytes. The first and last expert of
    the first and last layer are encoded and compared; the others share their conversion.
    """
    if record.prequantized is not None and record.prequantized.name == "int4":
        return None  # its scales and zero points are joined
    files = {file: number for number, file in enumerate(_files(model))}
    extents: dict[ExpertId, tuple[Extent, ...]] = {}
    for layer in model.layers:
        for index in range(layer.count):
            expert = ExpertId(layer.index, index)
            own = _expert_extents(model, record, expert, files)
            if own is None:
                return None
            extents[expert] = own
    for number in {0, len(model.layers) - 1}:
        for index in (0, model.layers[number].count - 1):
            expert = ExpertId(number, index)
            if not _bytes_agree(model, record, expert, extents[expert], list(files)):
                return None
    return extents


def _cut(extents: Sequence[Extent], chunk_bytes: int) -> Sequence[Extent]:
    return tuple(
        Extent(
            extent.file,
            extent.offset + start,
            extent.record_offset + start,
            min(chunk_bytes, extent.size_bytes - start),
        )
        for extent in extents
        for start in range(0, extent.size_bytes, chunk_bytes)
    )


def _files(model: LoadedModel) -> list[Path]:
    return sorted({entry.file for entry in model.checkpoint.tensors.values()})


def _expert_extents(
    model: LoadedModel, record: RecordFormat, expert: ExpertId, files: dict[Path, int]
) -> tuple[Extent, ...] | None:
    layer = model.layers[expert.layer]
    extents = []
    for part in record.parts:
        source = layer.sources[part.name]
        entries = source.expert_entries(expert.expert, layer.count, model.checkpoint)
        fields = [(part.name, entries, record.sixteen)]
        if record.prequantized is not None and part.kind == "matrix":
            scales = source.expert_entries(
                expert.expert, layer.count, model.checkpoint, scales=True
            )
            fp8 = record.prequantized.name == "fp8"
            fields = [
                (part.name, entries, torch.float8_e4m3fn if fp8 else torch.uint8),
                (f"{part.name}.scales", scales, torch.float32 if fp8 else torch.uint8),
            ]
        for name, own, dtype in fields:
            field = record.layout.field(name)
            if own is None or any(entry.dtype != dtype for entry in own):
                return None
            if sum(entry.size_bytes for entry in own) != field.size_bytes:
                return None
            offset = field.offset
            for entry in own:
                extents.append(Extent(files[entry.file], entry.offset, offset, entry.size_bytes))
                offset += entry.size_bytes
    return tuple(extents)


def _bytes_agree(
    model: LoadedModel,
    record: RecordFormat,
    expert: ExpertId,
    extents: Sequence[Extent],
    files: Sequence[Path],
) -> bool:
    """Whether an expert's stored bytes equal its record as it would be packed."""
    packed = encode_expert(model, expert, record)
    found = torch.zeros_like(packed)
    for extent in extents:
        piece = slice(extent.record_offset, extent.record_offset + extent.size_bytes)
        found[piece] = read_bytes(files[extent.file], extent.offset, extent.size_bytes)
    return torch.equal(found, packed)
