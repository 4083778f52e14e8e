"""int4 checkpoints that cannot be read exactly are refused by name, and lying ones plainly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import CheckpointError
from engine.model.loader import LoadedModel, load_model
from engine.types import ExpertId
from tests.engine.families import save_tiny
from tests.engine.model.int4_layouts import publish_awq, publish_compressed, publish_gptq
from tests.engine.model.layouts import Tensors, edit_config, read_tensors, write_tensors

PUBLISH: dict[str, Callable[..., Tensors]] = {
    "gptq": publish_gptq,
    "awq": publish_awq,
    "compressed": publish_compressed,
    "asymmetric": lambda folder: publish_compressed(folder, symmetric=False),
}
Lie = Callable[[Tensors], Tensors]
EXPERT = "model.layers.1.mlp.experts.3.up_proj"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("qwen3_moe", tmp_path_factory.mktemp("plain") / "model", num_hidden_layers=2)


@pytest.fixture(scope="module")
def published(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder of each method."""
    found = {}
    for name, publish in PUBLISH.items():
        found[name] = copy_of(plain, tmp_path_factory.mktemp("int4") / name)
        publish(found[name])
    return found


def copy_of(folder: Path, into: Path) -> Path:
    into.mkdir()
    for file in folder.iterdir():
        (into / file.name).write_bytes(file.read_bytes())
    return into


def load(folder: Path) -> LoadedModel:
    """Read everything that a run may read."""
    model = load_model(folder, torch.bfloat16)
    for layer in model.layers:
        for index in range(layer.count):
            model.read_expert(ExpertId(layer.index, index))
    return model


def group(**changes: Any) -> dict[str, Any]:
    """config_groups of one group with these changes; `weights` is merged."""
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
    weights |= changes.pop("weights", {})
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, **changes}}}


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("gptq", {"bits": 3}, "gptq of 3 bits"),
    ("gptq", {"bits": 8}, "gptq of 8 bits"),
    ("gptq", {"bits": "4"}, "gptq of '4' bits"),
    ("gptq", {"bits": True}, "gptq of True bits"),
    ("gptq", {"bits": None}, "gptq of unknown bits"),
    ("gptq", {"checkpoint_format": "marlin"}, "gptq in the layout marlin"),
    ("gptq", {"checkpoint_format": ["gptq"]}, "gptq in the layout"),
    ("gptq", {"is_marlin_format": True}, "gptq in the layout marlin"),
    ("gptq", {"pack_dtype": "int64"}, "gptq packed into int64"),
    ("gptq", {"dynamic": {"+:.*down.*": {"bits": 8}}}, r"dynamic: \+:\.\*down"),
    ("gptq", {"dynamic": 7}, "dynamic: 7"),
    ("gptq", {"rotation": "hadamard"}, "gptq with rotated weights"),
    ("gptq", {"group_size": "32"}, "gptq in groups of '32'"),
    ("gptq", {"group_size": -2}, "gptq in groups of -2"),
    ("gptq", {"group_size": None}, "gptq in groups of None"),
    ("awq", {"version": "gemv"}, "awq in the layout gemv"),
    ("awq", {"version": "marlin"}, "awq in the layout marlin"),
    ("awq", {"bits": 8}, "awq of 8 bits"),
    ("awq", {"backend": "llm-awq"}, "awq of llm-awq"),
    ("awq", {"zero_point": False}, "awq without zero points"),
    ("compressed", {"format": "nvfp4-pack-quantized"}, "the format nvfp4-pack-quantized"),
    ("compressed", {"format": "int-quantized"}, "the format int-quantized"),
    ("compressed", {"format": "marlin-24"}, "the format marlin-24"),
    ("compressed", {"format": "mixed-precision"}, "the format mixed-precision"),
    ("compressed", {"format": None}, "the format None"),
    ("compressed", {"quantization_status": "frozen"}, "the status frozen"),
    ("compressed", {"kv_cache_scheme": {"num_bits": 8}}, "quantized keys and values"),
    ("compressed", {"transform_config": {"R1": {}}}, "rotated weights"),
    ("compressed", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse weights"),
    ("compressed", {"sparsity_config": 2}, "sparse weights"),
    ("compressed", {"config_groups": {}}, "without config_groups"),
    ("compressed", {"config_groups": ["W4A16"]}, "without config_groups"),
    ("compressed", {"config_groups": {"group_0": 4}}, "name no weights"),
    ("compressed", group(input_activations={"num_bits": 8}), "quantized activations"),
    ("compressed", group(format="float-quantized"), "the format float-quantized"),
    ("compressed", group(weights={"num_bits": 8}), "compressed-tensors of 8 bits"),
    ("compressed", group(weights={"type": "float"}), "weights of type float"),
    ("compressed", group(weights={"actorder": "group"}), "actorder: group"),
    ("compressed", group(weights={"strategy": "block"}), "scales by block"),
    ("compressed", group(weights={"strategy": ["group"]}), "scales by"),
    ("compressed", group(weights={"dynamic": True}), "quantized when they are used"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "changes", "said"), REFUSED)
def test_what_cannot_be_read_exactly_is_refused_by_name(
    published: dict[str, Path], method: str, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = copy_of(published[method], tmp_path / "model")
    own = json.loads((folder / "config.json").read_text())["quantization_config"]
    edit_config(folder, {**own, **changes})
    with pytest.raises(CheckpointError, match=rf"quantized with .*{said}.*bf16 checkpoint"):
        load(folder)


@pytest.mark.parametrize("method", ["bitsandbytes", "eetq", "hqq", "quanto", "auto-round"])
def test_other_methods_are_refused_by_name(plain: Path, method: str, tmp_path: Path) -> None:
    folder = copy_of(plain, tmp_path / "model")
    edit_config(folder, {"quant_method": method, "load_in_4bit": True})
    with pytest.raises(CheckpointError, match=rf"quantized with {method}, .*pack-quantized.*bf16"):
        load(folder)


def dropped(name: str) -> Lie:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def changed(
    name: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: change(tensors[name])}


def nan(tensor: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.arange(tensor.numel()).view(tensor.shape) == 5, torch.nan, tensor).to(
        tensor.dtype
    )


LIES: list[tuple[str, Lie, str]] = [
    ("gptq", dropped(f"{EXPERT}.scales"), rf"needs {EXPERT}\.scales, which is missing"),
    ("gptq", dropped(f"{EXPERT}.qzeros"), rf"needs {EXPERT}\.qzeros, which is missing"),
    ("gptq", dropped(f"{EXPERT}.qweight"), "a part of quantized weights"),
    ("gptq", changed(f"{EXPERT}.qweight", lambda t: t[:-1]), "does not suit config.json's groups"),
    ("gptq", changed(f"{EXPERT}.qweight", lambda t: t[:, :-1]), "its codes 31 rows"),
    ("gptq", changed(f"{EXPERT}.qweight", lambda t: t.long()), "not a matrix of int32"),
    ("gptq", changed(f"{EXPERT}.qweight", lambda t: t[None]), "not a matrix of int32"),
    ("gptq", changed(f"{EXPERT}.qweight", lambda t: t[:0]), "not a matrix of int32"),
    ("gptq", changed(f"{EXPERT}.scales", lambda t: t[:1]), "does not suit config.json's groups"),
    ("gptq", changed(f"{EXPERT}.scales", lambda t: t[:0]), "does not suit config.json's groups"),
    ("gptq", changed(f"{EXPERT}.scales", lambda t: t.double()), "torch.float64"),
    ("gptq", changed(f"{EXPERT}.scales", nan), "values that are no numbers"),
    ("gptq", changed(f"{EXPERT}.qzeros", lambda t: t[:, :-1]), "groups of 32 rows need"),
    ("gptq", changed(f"{EXPERT}.qzeros", lambda t: t + 0x11111111), "should be gptq_v2"),
    ("gptq", changed(f"{EXPERT}.g_idx", lambda t: t + 1), "names groups other than 0 to 1"),
    ("gptq", changed(f"{EXPERT}.g_idx", lambda t: t - 1), "names groups other than 0 to 1"),
    ("gptq", changed(f"{EXPERT}.g_idx", lambda t: t.flip(0)), "an order of their own"),
    ("gptq", changed(f"{EXPERT}.g_idx", lambda t: t * 0), "an order of their own"),
    ("gptq", changed(f"{EXPERT}.g_idx", lambda t: t[:-1]), r"not \(64,\) and int32"),
    ("gptq", changed(f"{EXPERT}.g_idx", lambda t: t.float()), r"not \(64,\) and int32"),
    ("gptq", lambda t: {**t, f"{EXPERT}.weight": torch.zeros(32, 64)}, r"holds both .*qweight"),
    ("awq", dropped(f"{EXPERT}.qzeros"), rf"needs {EXPERT}\.qzeros, which is missing"),
    ("awq", changed(f"{EXPERT}.qweight", lambda t: t[:-2]), "does not suit config.json's groups"),
    ("awq", changed(f"{EXPERT}.qzeros", lambda t: t[:1]), "groups of 32 rows need"),
    ("awq", changed(f"{EXPERT}.scales", lambda t: t.int()), "torch.int32"),
    ("awq", lambda t: {k.replace("qweight", "other"): v for k, v in t.items()}, "belongs to other"),
    ("compressed", dropped(f"{EXPERT}.weight_scale"), "weight_scale, which is missing"),
    ("compressed", changed(f"{EXPERT}.weight_scale", nan), "values that are no numbers"),
    ("compressed", changed(f"{EXPERT}.weight_shape", lambda t: t - 1), r"says \(31, 63\)"),
    ("compressed", changed(f"{EXPERT}.weight_shape", lambda t: t[:1]), r"not \(2,\)"),
    ("compressed", changed(f"{EXPERT}.weight_packed", lambda t: t[:, :3]), "does not suit"),
    ("asymmetric", dropped(f"{EXPERT}.weight_zero_point"), "without zero points, which does not"),
    ("asymmetric", changed(f"{EXPERT}.weight_zero_point", lambda t: t[:1]), "32 rows need"),
    (
        "asymmetric",
        changed(f"{EXPERT}.weight_zero_point", lambda t: torch.full((32, 2), 9).to(torch.int8)),
        "that 4 bits cannot have",
    ),
    (
        "compressed",
        lambda t: {**t, f"{EXPERT}.weight_g_idx": torch.arange(64) % 2},
        "an order of their own",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("method", "lie", "said"), LIES)
def test_every_lie_is_one_plain_error(
    published: dict[str, Path],
    method: str,
    lie: Lie,
    said: str,
    tmp_path: Path,
) -> None:
    folder = copy_of(published[method], tmp_path / "model")
    write_tensors(folder, lie(read_tensors(folder)))
    with pytest.raises(CheckpointError, match=said):
        load(folder)


def with_order(folder: Path, order: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """A folder that says desc_act, with every g_idx changed."""
    own = json.loads((folder / "config.json").read_text())["quantization_config"]
    edit_config(folder, {**own, "desc_act": True})
    tensors = read_tensors(folder)
    write_tensors(folder, {k: order(v) if k.endswith("g_idx") else v for k, v in tensors.items()})
    return folder


def test_desc_act_in_the_order_of_places_is_read(
    published: dict[str, Path], tmp_path: Path
) -> None:
    load(with_order(copy_of(published["gptq"], tmp_path / "model"), lambda t: t))


def test_desc_act_is_refused_by_name_before_experts_are_read(
    published: dict[str, Path], tmp_path: Path
) -> None:
    folder = with_order(copy_of(published["gptq"], tmp_path / "model"), lambda t: t.flip(0))
    with pytest.raises(CheckpointError, match=r"desc_act, .*made with desc_act false"):
        load_model(folder, torch.bfloat16, weights=False)


def test_desc_act_without_its_order_is_refused(published: dict[str, Path], tmp_path: Path) -> None:
    folder = with_order(copy_of(published["gptq"], tmp_path / "model"), lambda t: t)
    tensors = read_tensors(folder)
    write_tensors(folder, {k: v for k, v in tensors.items() if not k.endswith("g_idx")})
    with pytest.raises(CheckpointError, match="needs g_idx"):
        load(folder)


def test_layers_that_are_left_out_by_a_rule_are_read_as_they_are(
    published: dict[str, Path], tmp_path: Path
) -> None:
    folder = copy_of(published["gptq"], tmp_path / "model")
    own = json.loads((folder / "config.json").read_text())["quantization_config"]
    edit_config(folder, {**own, "dynamic": {"-:.*mlp.gate.*": {}}})
    load(folder)
