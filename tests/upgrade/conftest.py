"""The tuner's command and an engine on the checkpoint that the fixtures were packed from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.device.cpu import CpuDevice
from engine.run.engine import Engine
from tests.tuner.conftest import folder, tune
from tests.upgrade.folders import CHECKPOINT

__all__ = ["folder", "tune"]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "engine"


@pytest.fixture
def engine(cache: Path) -> Iterator[Engine]:
    opened = Engine(CHECKPOINT, CpuDevice(), cache)
    yield opened
    opened.close()
