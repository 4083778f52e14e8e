"""One open engine on the tiny model for all tests of serving."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from engine.device.cpu import CpuDevice
from engine.run.engine import Engine
from tests.engine.serve.made import Running, configure, serving


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def engine(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    opened = Engine(tiny_folder, CpuDevice(), tmp_path_factory.mktemp("cache"))
    configure(opened)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def server(engine: Engine, tokenizer: Any) -> Iterator[Running]:
    with serving(engine, tokenizer) as running:
        yield running
