"""Reading experts straight from the checkpoint gives what transformers' conversion gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.model.expert_reader import ExpertReader
from engine.model.loader import LoadedModel, load_model
from engine.types import ExpertId
from tests.engine.families import each_family, save_tiny


def assert_reads_the_same(model: LoadedModel, reader: ExpertReader) -> None:
    for layer in model.layers:
        for index in range(layer.count):
            expert = ExpertId(layer.index, index)
            found, wanted = reader.read(expert), model.read_expert(expert)
            assert list(found) == list(wanted)
            for name, tensor in wanted.items():
                assert found[name].dtype == tensor.dtype
                assert torch.equal(found[name], tensor), f"{name} of {expert}"


@pytest.mark.parametrize("family", each_family())
def test_every_family_s_experts_are_read_as_they_are_converted(family: str, tmp_path: Path) -> None:
    save_tiny(family, tmp_path)
    model = load_model(tmp_path, torch.bfloat16, weights=False)
    assert_reads_the_same(model, ExpertReader(model))


def test_experts_stored_one_by_one_are_joined_without_a_conversion(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(tiny_folder, torch.bfloat16, weights=False)
    reader = ExpertReader(model)
    wanted = model.read_expert(ExpertId(1, 3))
    reader.read(ExpertId(1, 0))
    monkeypatch.setattr(LoadedModel, "read_part", None)
    found = reader.read(ExpertId(1, 3))
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_an_expert_of_equal_values_shows_no_order(tiny_folder: Path, tmp_path: Path) -> None:
    for file in tiny_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    for name, tensor in tensors.items():
        if ".experts.0." in name or name.endswith((".gate_up_proj", ".down_proj")):
            (tensor if ".experts.0." in name else tensor[0]).zero_()
    save_file(tensors, weights, metadata={"format": "pt"})
    model = load_model(tmp_path, torch.bfloat16, weights=False)
    reader = ExpertReader(model)
    reader.read(ExpertId(0, 0))
    assert not reader._in_order
    assert_reads_the_same(model, reader)
