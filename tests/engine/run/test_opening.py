"""Opening puts no weights on the device: a small card takes them at the first config's bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from engine.config.settings import EngineConfig
from engine.model.non_expert import HostEmbedding, can_keep_embeddings_on_host
from engine.run import engine as engines
from engine.run.engine import Engine
from engine.run.non_expert import place_weights
from tests.fakes.staged_device import StagedDevice

CARD = torch.device("meta")  # a device that is not the host's


class CardDevice(StagedDevice):
    """Weights can be moved to it; nothing computes there."""

    def __init__(self) -> None:
        super().__init__()
        self.torch_device = CARD


def weights(engine: Engine) -> list[torch.Tensor]:
    return [*engine.model.model.parameters(), *engine.model.model.buffers()]


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_the_device_first_holds_weights_at_the_bits_of_the_first_config(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    placed: list[int] = []

    class EnoughError(Exception):
        """The weights are placed; the rest needs a device that computes."""

    def place(loaded: Any, embeddings: str, device: torch.device) -> None:
        assert device == CARD
        assert all(one.device.type == "cpu" for one in weights(engine))
        placed.append(sum(one.nbytes for one in weights(engine)))
        place_weights(loaded, embeddings, device)  # type: ignore[arg-type]
        raise EnoughError

    monkeypatch.setattr(engines, "place_weights", place)
    engine = Engine(tiny_folder, CardDevice(), tmp_path)
    opened = sum(one.nbytes for one in weights(engine))
    assert all(one.device.type == "cpu" for one in weights(engine))
    config = {"precision.non_expert_bits": bits, "kernel.name": "dequantize"}
    with pytest.raises(EnoughError):
        engine.configure(EngineConfig().overlay(config))
    assert all(one.device == CARD for one in weights(engine))
    assert len(placed) == 1, "they were moved once, and never at other bits"
    assert placed[0] == opened if bits == 16 else placed[0] < opened


def test_what_is_placed_already_stays(tiny_folder: Path, tmp_path: Path) -> None:
    engine = Engine(tiny_folder, CardDevice(), tmp_path)
    for _ in range(2):  # as after a failure in between
        place_weights(engine.model, "host", CARD)
        table = engine.model.model.get_input_embeddings()
        assert isinstance(table, HostEmbedding)
        assert table._table[0].device.type == "cpu"
    assert can_keep_embeddings_on_host(engine.model.model), "they are kept there"
    heads = [m for m in engine.model.model.modules() if isinstance(m, nn.Linear)]
    assert all(one.weight.device == CARD for one in heads)
