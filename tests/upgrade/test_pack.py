"""Packs of every layout: the present one opens as it is, a former one is said and made again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.config.settings import EngineConfig
from engine.experts.encoding.codec import encode
from engine.experts.kernels.registry import NO_KERNELS
from engine.experts.tiers.pack import ensure_pack
from engine.memory.plan import resolve
from engine.run.engine import Engine
from engine.types import ExpertId
from tests.upgrade.folders import fixture, versions_now, versions_of
from tests.upgrade.make import HALF_PACKED_BITS, PACKED_BITS

NOW = versions_now({})["pack"]


def record_of(engine: Engine, bits: int) -> Any:
    settings = {"precision.bits": bits, "kernel.name": "dequantize"}
    config, _ = resolve(EngineConfig().overlay(settings), engine.facts)
    return engine.record_format(config, NO_KERNELS)


def right_bytes(engine: Engine, bits: int) -> bytes:
    record, experts = record_of(engine, bits), (ExpertId(0, n) for n in range(4))
    return b"".join(
        encode(engine.model.read_expert(one), record).numpy().tobytes() for one in experts
    )


@pytest.mark.parametrize("version", versions_of("pack"))
def test_a_pack_of_this_version_opens_or_is_made_again(
    version: str, cache: Path, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(fixture("pack", version) / "packs", cache / "packs")
    encoded: list[int] = []
    for bits in (PACKED_BITS, HALF_PACKED_BITS):
        encoded.clear()
        pack = ensure_pack(
            cache,
            engine.model,
            record_of(engine, bits),
            progress=lambda done, _: encoded.append(done),
        )
        assert pack.records.read_bytes() == right_bytes(engine, bits)
        if version == NOW:
            assert encoded == ([] if bits == PACKED_BITS else [1, 2, 3, 4])
            assert caplog.text == ""
    if version.partition(".")[0] != NOW.partition(".")[0]:
        assert "have a former layout and are not read" in caplog.text
        assert "tune pack --list" in caplog.text
