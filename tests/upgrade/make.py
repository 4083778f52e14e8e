"""Writes the fixtures that are missing: `python -m tests.upgrade.make`, after a version changed."""

from __future__ import annotations

import contextlib
import io
import json
import platform
import re
import shutil
import socket
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from engine.config.settings import EngineConfig
from engine.derived.file import DerivedKind
from engine.device.cpu import CpuDevice
from engine.experts.kernels.registry import NO_KERNELS
from engine.experts.tiers.pack import ensure_pack
from engine.memory.plan import resolve
from engine.run.engine import Engine
from tests.engine.derived.subjects import SUBJECTS
from tests.engine.families import COMMON, EXTRA
from tests.fakes.study import tune_in, write_definition
from tests.upgrade.folders import CHECKPOINT, FILES, fixture, versions_now

DOCUMENTS = {
    "studies": ("studies",),
    "show": ("show", "small"),
    "doctor-store": ("doctor", "--store"),
}
NAMED = (".machine", ".params", ".config", ".definition", ".metrics", ".scores", ".predicted")
STUDY = ("--definition", "study.yaml", "--sampler", "random")
SCRATCH = re.compile(rf"{re.escape(tempfile.gettempdir())}/\w+")
SMALLEST = {
    "vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_experts": 4,
}  # fmt: skip
PACKED_BITS, HALF_PACKED_BITS = 4, 8


def make_missing() -> list[Path]:
    """The folders that were written."""
    if not CHECKPOINT.is_dir():
        write_checkpoint(CHECKPOINT)
    made = []
    with (
        tempfile.TemporaryDirectory() as name,
        pytest.MonkeyPatch.context() as patch,
        contextlib.closing(Engine(CHECKPOINT, CpuDevice(), Path(name) / "engine")) as engine,
    ):
        scratch = Path(name)
        kinds = write_derived(scratch / "derived", engine, patch)
        written = lambda name: (scratch / "study" / name).read_text("utf-8")  # noqa: E731
        makers: dict[str, Callable[[Path], object]] = {
            "store": lambda to: write_store(scratch / "study", to),
            "deployment": lambda to: keep_text(written("expertune-small.yaml"), to / "small.yaml"),
            "definition": write_inputs,
            "json": lambda to: write_json(scratch / "study", to),
            "progress": lambda to: keep_text(written("progress.jsonl"), to / "progress.jsonl"),
            "pack": lambda to: write_packs(engine, to),
        }
        make_study(scratch / "study")
        for kind, version in versions_now(kinds).items():
            target = fixture(kind, version)
            if target.is_dir():
                continue
            if kind in makers:
                makers[kind](target)
            else:
                (file,) = (scratch / "derived" / kind).iterdir()
                keep(file, target)
            made.append(target)
    return made


def keep(file: Path, folder: Path, name: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, folder / (name or file.name))


def keep_text(text: str, file: Path) -> None:
    """Without what is of this machine."""
    host = re.compile(rf"\b{re.escape(socket.gethostname())}\b")
    file.parent.mkdir(parents=True, exist_ok=True)
    text = SCRATCH.sub("/home/someone", text)
    text = host.sub("some-machine", text).replace(platform.release(), "6.1.0")
    file.write_text(text, encoding="utf-8")


def write_checkpoint(folder: Path) -> None:
    """The smallest that every precision packs."""
    torch.manual_seed(0)
    sizes = {**COMMON, **EXTRA["qwen3_moe"], **SMALLEST}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["qwen3_moe"](**sizes))
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def write_derived(
    folder: Path, engine: Engine, patch: pytest.MonkeyPatch
) -> dict[str, DerivedKind]:
    """One of every kind of FILES, in a folder of its name; their kinds."""
    kinds = {}
    for slug, name in FILES.items():
        made = folder / "made" / slug
        made.mkdir(parents=True)
        with patch.context() as patched:
            subject = SUBJECTS[name](made, engine, patched)
            subject.write()
        kinds[slug] = subject.kind
        keep(subject.path, folder / slug, f"{slug}{subject.path.suffix}")
    return kinds


def write_packs(engine: Engine, folder: Path) -> None:
    """A pack, and one whose packing was interrupted."""

    def stop(done: int, total: int) -> None:
        if done == total - 1:
            raise KeyboardInterrupt

    for bits in (PACKED_BITS, HALF_PACKED_BITS):
        settings = {"precision.bits": bits, "kernel.name": "dequantize"}
        config, _ = resolve(EngineConfig().overlay(settings), engine.facts)
        record = engine.record_format(config, NO_KERNELS)
        progress = stop if bits == HALF_PACKED_BITS else None
        with contextlib.suppress(KeyboardInterrupt):
            ensure_pack(engine.cache_folder, engine.model, record, progress=progress)
    shutil.copytree(engine.cache_folder / "packs", folder / "packs")


def make_study(folder: Path) -> None:
    """A finished study of the fake engine, a token of a service, and lines of progress."""
    folder.mkdir()
    write_definition(folder)
    with contextlib.redirect_stderr(io.StringIO()) as said:
        tune_in(folder, *STUDY, "--trials", "2", "--json-progress")
    (folder / "progress.jsonl").write_text(said.getvalue(), encoding="utf-8")
    tune_in(folder, "service", "token", "add", "ci")


def write_store(study: Path, folder: Path) -> None:
    """As SQL, which shows what it holds and is small."""
    store = study / "data" / "expertune" / "expertune.db"
    with contextlib.closing(sqlite3.connect(store)) as connection:
        lines = "\n".join(connection.iterdump())
    keep_text(f"{lines}\n", folder / "store.sql")


def write_inputs(folder: Path) -> None:
    """What users write: the definition of a study and its workload."""
    folder.mkdir(parents=True)
    write_definition(folder)


def write_json(study: Path, folder: Path) -> None:
    """The keys of documents of commands that read a store."""
    folder.mkdir(parents=True)
    for name, words in DOCUMENTS.items():
        keys = sorted(set(keys_of(json.loads(tune_in(study, *words, "--json")))))
        (folder / f"{name}.txt").write_text("\n".join(keys) + "\n", encoding="utf-8")


def keys_of(value: Any, path: str = "") -> Iterator[str]:
    """The paths of all keys; of what a machine or settings name, no further."""
    if isinstance(value, dict) and not path.endswith(NAMED):
        for key, inner in value.items():
            yield f"{path}.{key}"
            yield from keys_of(inner, f"{path}.{key}")
    if isinstance(value, list):
        for inner in value:
            yield from keys_of(inner, f"{path}[]")


if __name__ == "__main__":
    for path in make_missing() or ["nothing: every version has its fixture"]:
        print(path)
