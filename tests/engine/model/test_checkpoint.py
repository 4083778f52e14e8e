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


@pytest.mark.parametrize("offsets", [[0, 128], [0.0, 128.0], [16, 144], [-128, 0]])
def test_byte_ranges_that_no_safetensors_file_has_are_refused(
    copied: Path, offsets: list[float]
) -> None:
    weights = copied / "model.safetensors"
    data = weights.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["model.norm.weight"]["data_offsets"] = offsets
    text = json.dumps(header).encode()
    weights.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
    with pytest.raises(CheckpointError, match=r"corrupt safetensors header .* copy or download"):
        load(copied)


def test_bytes_behind_the_last_tensor_are_refused(copied: Path) -> None:
    # Comfy-Org/ComfyUI#6744: a download that broke; safetensors refuses this too
    with (copied / "model.safetensors").open("ab") as stream:
        stream.write(b"again")
    with pytest.raises(CheckpointError, match="5 bytes behind its last tensor"):
        load(copied)


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


@pytest.mark.parametrize(
    "changes",
    [{"hidden_size": "64"}, {"hidden_size": -64}, {"num_attention_heads": 0},
     {"hidden_act": "nonsense"}, {"quantization_config": "awq"}, {"model_type": ["mixtral"]},
     {"rope_parameters": {"rope_type": "yarnx", "factor": 4.0}}],
)  # fmt: skip
def test_values_that_no_config_can_have_are_one_sentence(
    copied: Path, changes: dict[str, object]
) -> None:
    # sgl-project/sglang#26674, huggingface/transformers#45019: transformers 5 checks types strictly
    edit_config(copied, **changes)
    with pytest.raises(ModelError, match=r"config\.json") as caught:
        load(copied)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("inside", ["weights", "snapshots/0a1b", "models--a--b/snapshots/0a1b"])
def test_a_folder_around_a_model_says_which_to_give(
    tiny_folder: Path, tmp_path: Path, inside: str
) -> None:
    # the folder of the hub's cache is given, not its snapshot
    shutil.copytree(tiny_folder, tmp_path / inside)
    with pytest.raises(NotAModelError, match=f"{inside} has one: give that"):
        load(tmp_path)
