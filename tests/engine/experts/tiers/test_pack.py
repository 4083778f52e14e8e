"""Packs: torn ones are resumed or rebuilt and never read; corrupt records are found."""

from __future__ import annotations

import json
import shutil
import threading
import zlib
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config.settings import EngineConfig
from engine.derived.file import read, save_json
from engine.errors import EngineError, PackError, StorageError
from engine.experts.encoding.codec import encode
from engine.experts.kernels.registry import NO_KERNELS
from engine.experts.tiers import pack as pack_module
from engine.experts.tiers.disk import in_place_extents, open_store
from engine.experts.tiers.pack import MANIFEST, ensure_pack, open_pack, pack_folder
from engine.memory.plan import resolve
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from engine.types import ExpertId, format_bytes
from tuner.engine_client.packs import list_packs

BITS = {"precision.bits": 4, "kernel.name": "dequantize"}


class Interrupted(Exception):
    """Stands for a kill in the middle of packing."""


def make_record(engine: Engine):  # type: ignore[no-untyped-def]
    config, _ = resolve(EngineConfig().overlay(BITS), engine.facts)
    return engine.record_format(config, NO_KERNELS)


@pytest.mark.parametrize("after", [1, 8, 9, 13, 23, 24])
def test_a_torn_pack_is_never_read_and_is_finished_later(engine: Engine, after: int) -> None:
    record, root = make_record(engine), engine.cache_folder
    calls = 0

    def stop(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if done == after:
            raise Interrupted

    with pytest.raises(Interrupted):
        ensure_pack(root, engine.model, record, progress=stop)
    folder = pack_folder(root, engine.model, record)
    assert open_pack(folder, engine.model, record) is None
    packed: list[int] = []
    pack = ensure_pack(root, engine.model, record, progress=lambda done, _: packed.append(done))
    assert packed[0] == (after - 1) // 8 * 8 + 1, "whole layers are kept, the torn one is redone"
    check_records(engine, pack.records, record)


def test_damage_in_a_torn_pack_is_noticed_and_redone(engine: Engine) -> None:
    record, root = make_record(engine), engine.cache_folder

    def stop(done: int, total: int) -> None:
        if done == 20:
            raise Interrupted

    with pytest.raises(Interrupted):
        ensure_pack(root, engine.model, record, progress=stop)
    partial = pack_folder(root, engine.model, record) / "records.partial"
    data = bytearray(partial.read_bytes())
    data[record.size_bytes * 10] ^= 255
    partial.write_bytes(bytes(data))
    pack = ensure_pack(root, engine.model, record)
    check_records(engine, pack.records, record)


@pytest.mark.parametrize("stage", ["read", "encode", "write"])
def test_an_error_of_any_stage_reaches_the_caller_and_packing_resumes(
    engine: Engine, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, root = make_record(engine), engine.cache_folder
    calls = 0

    def fail_later(original: Any) -> Any:
        def run(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > 12:
                raise Interrupted
            return original(*arguments, **named)

        return run

    where, name = {
        "read": (pack_module.ExpertReader, "read"),
        "encode": (pack_module, "encode"),
        "write": (zlib, "crc32"),
    }[stage]
    before = set(threading.enumerate())
    with monkeypatch.context() as patch:
        patch.setattr(where, name, fail_later(getattr(where, name)))
        with pytest.raises(Interrupted):
            ensure_pack(root, engine.model, record)
    assert set(threading.enumerate()) == before
    assert calls <= 16, "nothing goes on for long behind an error"
    done: list[int] = []
    pack = ensure_pack(root, engine.model, record, progress=lambda number, _: done.append(number))
    assert done == list(range(9, 25)), "the layer before the error is kept"
    check_records(engine, pack.records, record)


def test_progress_is_told_in_the_calling_thread_in_order(engine: Engine) -> None:
    told: list[tuple[int, int, int]] = []
    ensure_pack(
        engine.cache_folder,
        engine.model,
        make_record(engine),
        progress=lambda done, total: told.append((done, total, threading.get_ident())),
    )
    assert told == [(number, 24, threading.get_ident()) for number in range(1, 25)]


def check_records(engine: Engine, path: Path, record) -> None:  # type: ignore[no-untyped-def]
    data = path.read_bytes()
    for number, expert in enumerate(ExpertId(layer, i) for layer in range(3) for i in range(8)):
        expected = encode(engine.model.read_expert(expert), record).numpy().tobytes()
        assert data[number * record.size_bytes :][: record.size_bytes] == expected


def test_a_corrupt_record_stops_the_run_and_says_what_to_do(engine: Engine) -> None:
    config = EngineConfig().overlay({**BITS, "kv.max_tokens": 32})
    engine.configure(config)
    records = engine.store.files[0]
    engine.release()
    data = bytearray(records.read_bytes())
    for number in range(24):
        data[number * (len(data) // 24) + 5] ^= 255
    records.write_bytes(bytes(data))
    engine.configure(config)
    with pytest.raises(PackError, match="corrupt: run again, which makes the pack again"):
        engine.prefill([MicroBatch(torch.arange(3, 13)[None])])
    with pytest.raises(EngineError, match="call configure first"):
        engine.forward([MicroBatch(torch.tensor([[3]]))], "decode")
    assert not (records.parent / "manifest.json").exists()
    engine.configure(config)
    engine.prefill([MicroBatch(torch.arange(3, 13)[None])])


def test_a_pack_of_something_else_is_not_taken(engine: Engine) -> None:
    record, root = make_record(engine), engine.cache_folder
    pack = ensure_pack(root, engine.model, record)
    manifest = pack.folder / "manifest.json"
    changed = json.loads(read(manifest, MANIFEST))
    changed["identity"]["model"] = "another"
    save_json(manifest, MANIFEST, changed)
    with pytest.raises(PackError, match="another model"):
        open_pack(pack.folder, engine.model, record)


def test_packs_of_differently_chosen_scales_are_two(engine: Engine) -> None:
    fitted = make_record(engine)
    plain = replace(fitted, optimize="none")
    assert fitted.optimize == "weighted_squares"
    folders = {pack_folder(engine.cache_folder, engine.model, one) for one in (fitted, plain)}
    assert len(folders) == 2
    pack = ensure_pack(engine.cache_folder, engine.model, plain)
    with pytest.raises(PackError, match="another model or format"):
        open_pack(pack.folder, engine.model, fitted)


def test_packs_of_a_former_layout_are_said_in_one_line(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    record, root = make_record(engine), engine.cache_folder
    folder = pack_folder(root, engine.model, record)
    stem = folder.name.rpartition("-v")[0]
    version = pack_module.PACK_VERSION
    fingerprint = folder.name.partition("-")[0]
    names = (f"{stem}-v{version - 1}", f"{fingerprint}-2b-g64-any-v{version - 2}")
    for name, kept in zip(names, ("records.bin", "records.partial"), strict=True):
        (folder.parent / name).mkdir(parents=True)
        (folder.parent / name / kept).write_bytes(bytes(1_000_000))
    (folder.parent / f"another-4b-g64-any-v{version - 1}").mkdir()
    ensure_pack(root, engine.model, record)
    said = [line.getMessage() for line in caplog.records if line.name == pack_module.__name__]
    assert len(said) == 1, "both packs of this model are said together"
    assert "2 packs of this model have a former layout" in said[0]
    assert said[0].endswith(f"frees {format_bytes(2_000_000)}")
    ensure_pack(root, engine.model, record)
    assert sum(line.name == pack_module.__name__ for line in caplog.records) == 1
    assert all((folder.parent / name).is_dir() for name in names), "the user removes them"


def test_packs_of_this_layout_alone_say_nothing(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    record, root = make_record(engine), engine.cache_folder
    ensure_pack(root, engine.model, replace(record, optimize="none"))
    ensure_pack(root, engine.model, record)
    assert not [line for line in caplog.records if line.name == pack_module.__name__]


def test_a_full_disk_is_said_before_anything_is_written(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(StorageError, match="are free: make room"):
        ensure_pack(engine.cache_folder, engine.model, make_record(engine))
    assert not any(pack.complete for pack in list_packs(engine.cache_folder))


def test_a_pack_over_the_disk_budget_is_refused(engine: Engine) -> None:
    with pytest.raises(StorageError, match="raise --disk"):
        ensure_pack(engine.cache_folder, engine.model, make_record(engine), disk_budget_bytes=1000)


def test_16_bit_experts_are_read_in_place(engine: Engine) -> None:
    config, _ = resolve(EngineConfig(), engine.facts)
    record = engine.record_format(config, NO_KERNELS)
    assert in_place_extents(engine.model, record) is not None
    store = open_store(engine.model, record, engine.cache_folder, "auto")
    expert = ExpertId(1, 5)
    data = bytearray(record.size_bytes)
    for piece in store.chunks(expert, 4096):
        end = piece.record_offset + piece.size_bytes
        scratch = memoryview(bytearray(store.scratch_bytes()))
        if store.direct:  # O_DIRECT needs page-aligned scratch
            from engine.device.pages import allocate_pages, bytes_view

            scratch = bytes_view(allocate_pages(store.scratch_bytes()))
        store.read(expert, piece, memoryview(data)[piece.record_offset : end], scratch)
    assert bytes(data) == encode(engine.model.read_expert(expert), record).numpy().tobytes()
    assert store.in_place
    store.close()
