"""Bad checkpoints get one clear sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.errors import (
    CheckpointError,
    DenseModelError,
    FamilyError,
    ModelError,
    NotAModelError,
    RemoteCodeError,
)
from engine.model.checkpoint import Checkpoint
from engine.model.hub import locate
from engine.model.loader import load_model
from tests.engine.families import save_tiny


@pytest.fixture
def copied(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def load(folder: Path, *, trust: bool = False) -> object:
    return load_model(folder, torch.bfloat16, trust_remote_code=trust)


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_tensors_are_read_whole_or_by_rows(copied: Path) -> None:
    checkpoint = Checkpoint(copied)
    whole = checkpoint.read("lm_head.weight")
    assert torch.equal(checkpoint.read("lm_head.weight", slice(3, 5)), whole[3:5])


def test_the_fingerprint_follows_the_weights(copied: Path, tiny_folder: Path) -> None:
    assert Checkpoint(copied).fingerprint == Checkpoint(tiny_folder).fingerprint
    weights = copied / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert Checkpoint(copied).fingerprint != Checkpoint(tiny_folder).fingerprint


@pytest.mark.parametrize("model", ["./nowhere", "/no/such/folder", "just-a-word", "a/b/c"])
def test_an_unknown_model_is_named_with_what_to_give(model: str) -> None:
    with pytest.raises(NotAModelError, match=r"give an existing folder"):
        locate(model)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("")
    with pytest.raises(NotAModelError, match="is a file"):
        locate(str(tmp_path / "x.gguf"))


def test_a_folder_without_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(NotAModelError, match=r"no config\.json"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 100, -10])
def test_a_truncated_file_is_refused(copied: Path, kept: int) -> None:
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="truncated"):
        Checkpoint(copied)


def test_a_corrupt_header_is_refused(copied: Path) -> None:
    weights = copied / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[8:20] = b"not json at "
    weights.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="corrupt"):
        Checkpoint(copied)


def test_pickle_is_refused(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    (copied / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match="pickle"):
        Checkpoint(copied)


def test_a_missing_shard_and_one_outside_the_folder_are_refused(copied: Path) -> None:
    index = copied / "model.safetensors.index.json"
    (copied / "model.safetensors").rename(copied / "model-1.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    with pytest.raises(CheckpointError, match="lacks 1 of 1"):
        Checkpoint(copied)
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside"):
        Checkpoint(copied)


def test_a_dense_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DenseModelError, match="'llama' is a dense model"):
        load(save_tiny("llama", tmp_path))


def test_an_unregistered_moe_family_is_refused_by_name(tmp_path: Path) -> None:
    folder = save_tiny("llama4_text", tmp_path, num_local_experts=4, intermediate_size_mlp=64)
    with pytest.raises(FamilyError, match="'llama4_text' does not use"):
        load(folder)


def test_remote_code_is_refused_unless_trusted(copied: Path) -> None:
    edit_config(copied, model_type="my_own", auto_map={"AutoConfig": "config.Mine"})
    with pytest.raises(RemoteCodeError, match="--trust-remote-code"):
        load(copied)


@pytest.mark.parametrize(
    "method", ["awq", "bitsandbytes", "compressed-tensors", "gptq", "fp8", "something-new", None]
)
def test_a_quantization_that_is_not_read_is_refused_by_name(
    copied: Path, method: str | None
) -> None:
    edit_config(copied, quantization_config={"quant_method": method} if method else {"bits": 4})
    named = method or "an unnamed method"
    with pytest.raises(CheckpointError, match=rf"quantized with {named}.*bf16 checkpoint"):
        load(copied)


def test_an_unknown_dtype_is_refused_by_name(copied: Path) -> None:
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b'"BF16"', b'"F4_2"', 1))
    with pytest.raises(CheckpointError, match="has dtype F4_2"):
        Checkpoint(copied)


def test_an_unknown_family_is_refused(copied: Path) -> None:
    edit_config(copied, model_type="nonsense")
    with pytest.raises(NotAModelError, match="'nonsense'"):
        load(copied)


def test_missing_tensors_are_named(copied: Path) -> None:
    checkpoint = Checkpoint(copied)
    tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
    del tensors["model.norm.weight"]
    save_file(tensors, copied / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors.*model\.norm\.weight"):
        load(copied)


def test_a_config_of_other_weights_is_refused(copied: Path) -> None:
    edit_config(copied, vocab_size=400)
    with pytest.raises(ModelError, match="belongs to other weights"):
        load(copied)
