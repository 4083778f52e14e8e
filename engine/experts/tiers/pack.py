"""Expert packs: a checkpoint's experts as one file of aligned records, one file per precision.

A pack folder holds `records.bin` and `manifest.json`. The manifest is written last, so a folder
without one is not a pack. While packing, `records.partial` grows layer by layer and `journal.jsonl`
names the layers whose records are safely on disk; an incomplete pack is resumed after the last
layer whose checksums match, or rebuilt, never read. While an expert is encoded, the next ones are
read and the last ones written; memory is that of a few experts.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import logging
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.derived.file import DerivedKind, drop, load_json, save_json
from engine.derived.lines import LineFile
from engine.errors import PackError, StorageError
from engine.experts.encoding.codec import RecordFormat, encode
from engine.experts.kernels.prequantized import encode_prequantized
from engine.experts.kernels.probe import layout_key
from engine.experts.tiers.packing import RecordWriter, experts_ahead, read_ahead
from engine.files import sync_folder
from engine.layout.record import parts_to_json
from engine.model.expert_reader import ExpertReader
from engine.model.loader import LoadedModel, MoeLayer
from engine.types import ExpertId, format_bytes

PACK_VERSION = 3
MANIFEST = DerivedKind("manifest of a pack", 1, "the pack is made again")
PACK_JOURNAL = DerivedKind("journal of packing", 1, "those layers are packed again")
_log = logging.getLogger(__name__)
_MARGIN_BYTES = 64_000_000
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Pack:
    """A complete pack. Offsets follow from layer sizes; checksums: crc32 by record number."""

    folder: Path
    records: Path
    record_bytes: int
    layer_counts: tuple[int, ...]
    checksums: tuple[int, ...]

    def number(self, expert: ExpertId) -> int:
        """Index of a record in the file."""
        return sum(self.layer_counts[: expert.layer]) + expert.expert


def pack_folder(root: Path, model: LoadedModel, record: RecordFormat) -> Path:
    """The folder of the pack of this model and format; its name contains every input of its
    bytes."""
    bits, group = record.layout.bits, record.layout.group_size
    key = f"{layout_key(record.code_layout)}-{record.optimize}" if bits <= 4 else "any"
    kind = f"{bits}b-g{group}-{key}" if record.prequantized is None else record.prequantized.name
    name = f"{model.checkpoint.fingerprint[:16]}-{kind}-v{PACK_VERSION}"
    return root / "packs" / name


def open_pack(folder: Path, model: LoadedModel, record: RecordFormat) -> Pack | None:
    """The complete pack in this folder, or None. Raises PackError if it is for something else."""

    def parse(manifest: Mapping[str, Any]) -> Pack:
        if manifest["identity"] != _identity(model, record):
            raise PackError(f"{folder} holds a pack of another model or format: remove it")
        counts = tuple(layer.count for layer in model.layers)
        checksums = tuple(int(one) for one in manifest["checksums"])
        if len(checksums) != sum(counts):
            raise ValueError(f"{len(checksums)} checksums of {sum(counts)} records")
        return Pack(folder, folder / "records.bin", record.size_bytes, counts, checksums)

    pack = load_json(folder / "manifest.json", MANIFEST, parse)
    if pack is None:
        return None
    expected_bytes = len(pack.checksums) * pack.record_bytes
    if not pack.records.is_file() or pack.records.stat().st_size != expected_bytes:
        return None
    return pack


def ensure_pack(
    root: Path,
    model: LoadedModel,
    record: RecordFormat,
    *,
    disk_budget_bytes: int = 0,
    progress: Progress | None = None,
) -> Pack:
    """Open the pack, or make it (resuming an incomplete one). Only one process packs at a time.

    Raises StorageError if the disk is full, read-only or over budget, before or while writing.
    """
    folder = pack_folder(root, model, record)
    if (pack := open_pack(folder, model, record)) is not None:
        return pack
    total = sum(layer.count for layer in model.layers) * record.size_bytes
    with _storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _exclusive(folder):
            if (pack := open_pack(folder, model, record)) is not None:
                return pack
            _reclaim_finished(folder)
            _say_former(folder)
            _check_space(folder, total, disk_budget_bytes)
            _write_pack(folder, model, record, progress)
    pack = open_pack(folder, model, record)
    if pack is None:
        raise PackError(f"{folder} did not become a pack: look for another program that removes it")
    return pack


def give_up_pack(records: Path, expert: ExpertId) -> None:
    """Drop the manifest of a pack in which this expert's record is corrupt, so that the pack is
    made again when it is opened next."""
    reason = f"the record of layer {expert.layer}, expert {expert.expert} beside it is corrupt"
    drop(records.with_name("manifest.json"), MANIFEST, reason)


def _identity(model: LoadedModel, record: RecordFormat) -> dict[str, Any]:
    own = {"prequantized": record.prequantized.to_json()} if record.prequantized else {}
    return {
        **own,
        "version": PACK_VERSION,
        "model": model.checkpoint.fingerprint,
        "bits": record.layout.bits,
        "group_size": record.layout.group_size,
        "record_bytes": record.size_bytes,
        "parts": parts_to_json(record.parts),
        "sixteen": str(record.sixteen),
        "optimize": record.optimize,
        "layout": layout_key(record.code_layout),
        "layers": [layer.count for layer in model.layers],
    }


def _write_pack(
    folder: Path, model: LoadedModel, record: RecordFormat, progress: Progress | None
) -> None:
    partial, journal = folder / "records.partial", folder / "journal.jsonl"
    identity = _identity(model, record)
    log = LineFile(journal, PACK_JOURNAL)
    checksums, done_layers = _resume(partial, log, identity, model, record)
    total = sum(layer.count for layer in model.layers)
    with partial.open("r+b" if partial.exists() else "w+b") as records:
        records.truncate(len(checksums) * record.size_bytes)
        records.seek(0, os.SEEK_END)
        if done_layers == 0 and not checksums:
            log.append({"identity": identity})
        layers = model.layers[done_layers:]
        with RecordWriter(records, log) as writer, _encoded(model, layers, record) as encoded:
            done = len(checksums)
            for layer in layers:
                for _ in range(layer.count):
                    writer.write(next(encoded))
                    done += 1
                    if progress is not None:
                        progress(done, total)
                writer.finish_layer(layer.index)
        checksums.extend(writer.checksums)
    partial.replace(folder / "records.bin")
    sync_folder(folder)
    manifest = {"identity": identity, "checksums": checksums, "created": time.time()}
    save_json(folder / "manifest.json", MANIFEST, manifest)
    journal.unlink()


@contextlib.contextmanager
def _encoded(
    model: LoadedModel, layers: Sequence[MoeLayer], record: RecordFormat
) -> Iterator[Iterator[torch.Tensor]]:
    """The records of the layers' experts in order, with the next experts read meanwhile."""
    experts = [ExpertId(layer.index, index) for layer in layers for index in range(layer.count)]
    ahead = experts_ahead(_expert_bytes(model))
    if record.prequantized is not None:
        copies = (
            functools.partial(encode_prequantized, model, expert, record) for expert in experts
        )
        with read_ahead(copies, ahead) as found:
            yield found
        return
    reader = ExpertReader(model)
    reads = (functools.partial(reader.read, expert) for expert in experts)
    with read_ahead(reads, ahead) as tensors:
        yield map(functools.partial(encode, record=record), tensors)


def _expert_bytes(model: LoadedModel) -> int:
    """Bytes of an expert as it is read. Codes of a pre-quantized checkpoint become float32."""
    each = 4 if model.checkpoint.prequantized else next(model.expert_entries()).dtype.itemsize
    return max(sum(part.elements for part in layer.parts) for layer in model.layers) * each


def encode_expert(model: LoadedModel, expert: ExpertId, record: RecordFormat) -> torch.Tensor:
    """The record of one expert, uint8 [record bytes]."""
    if record.prequantized is not None:
        return encode_prequantized(model, expert, record)
    return encode(model.read_expert(expert), record)


def _say_former(folder: Path) -> None:
    """Say in one line that packs of a former layout are not read any more."""
    fingerprint = folder.name.partition("-")[0]
    former = [
        other
        for other in folder.parent.glob(f"{fingerprint}-*")
        if other.name.rpartition("-v")[2] != str(PACK_VERSION)
    ]
    if former:
        size = sum(file.stat().st_size for other in former for file in other.glob("records.*"))
        _log.warning(
            "%d packs of this model have a former layout and are not read (`tune pack --list`); "
            "removing them frees %s",
            len(former),
            format_bytes(size),
        )


def _reclaim_finished(folder: Path) -> None:
    """Rename back records that were renamed just before a crash, to resume them as unfinished;
    remove those of which neither manifest nor journal is left."""
    partial, records = folder / "records.partial", folder / "records.bin"
    if not records.is_file() or (folder / "manifest.json").is_file():
        return
    if partial.exists() or not (folder / "journal.jsonl").is_file():
        records.unlink()
    else:
        records.replace(partial)


def _resume(
    partial: Path,
    journal: LineFile,
    identity: dict[str, Any],
    model: LoadedModel,
    record: RecordFormat,
) -> tuple[list[int], int]:
    """Checksums of the layers that are intact on disk, and the number of those layers."""
    if not (partial.is_file() and journal.path.is_file()):
        for path in (partial, journal.path):
            path.unlink(missing_ok=True)
        return [], 0
    lines = journal.read()
    checksums: list[int] = []
    layers = 0
    known = all(isinstance(line, dict) for line in lines)
    if known and lines and lines[0].get("identity") == identity:
        with partial.open("rb") as records:
            for line in lines[1 : len(model.layers) + 1]:
                sums = line.get("checksums")
                right = isinstance(sums, list) and line.get("layer") == layers
                if not right or len(sums) != model.layers[layers].count:
                    break
                blocks = (records.read(record.size_bytes) for _ in sums)
                if any(zlib.crc32(block) != crc for block, crc in zip(blocks, sums, strict=True)):
                    break
                checksums.extend(sums)
                layers += 1
    kept = lines[: layers + 1] if layers else []
    journal.rewrite(kept)
    return checksums, layers


def _check_space(folder: Path, total: int, disk_budget_bytes: int) -> None:
    if disk_budget_bytes and total > disk_budget_bytes:
        raise StorageError(
            f"the pack needs {format_bytes(total)}, the disk budget is "
            f"{format_bytes(disk_budget_bytes)}: raise --disk or use fewer bits"
        )
    partial = folder / "records.partial"
    have = partial.stat().st_size if partial.is_file() else 0
    free = shutil.disk_usage(folder).free
    if total - have + _MARGIN_BYTES > free:
        raise StorageError(
            f"the pack needs {format_bytes(total - have)} more in {folder}, "
            f"{format_bytes(free)} are free: make room or set XDG_CACHE_HOME to a larger disk"
        )


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StorageError(
                f"the disk of {folder} is full: make room; packing resumes where it stopped"
            ) from None
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise StorageError(
                f"{folder} cannot be written ({error.strerror}): set XDG_CACHE_HOME to a folder "
                "that can"
            ) from None
        raise


def record_checksum(data: memoryview) -> int:
    """crc32 of one record (releases the GIL on large ones)."""
    return zlib.crc32(data)
