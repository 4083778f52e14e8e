"""Folders as they really are: the right weights, or one sentence, never other weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from engine.errors import CheckpointError
from engine.model.checkpoint import Checkpoint
from engine.model.loader import load_model
from engine.model.weight_files import INDEX_NAME, WeightMap, choose_weight_files
from engine.types import ExpertId
from tests.engine.model.layouts import write_tensors

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 29483704\n"
APPLE = bytes.fromhex("0005160700020000") + b"Mac OS X        " + bytes(4072)


@pytest.fixture
def copied(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "a model (é) of 50%"))


def zero_copy(folder: Path, name: str, keep: slice = slice(None)) -> None:
    """Another weights file with the same tensors, all zero."""
    tensors = load_file(next(iter(sorted(folder.glob("*.safetensors")))))
    save_file({k: torch.zeros_like(v) for k, v in list(tensors.items())[keep]}, folder / name)


def shards(folder: Path) -> dict[str, torch.Tensor]:
    """Rewrite the folder's weights as three shards with an index."""
    tensors = load_file(folder / "model.safetensors")
    write_tensors(folder, tensors, shards=3)
    return tensors


def holds(folder: Path, tensors: dict[str, torch.Tensor]) -> bool:
    checkpoint = Checkpoint(folder)
    return all(torch.equal(checkpoint.read(name), tensor) for name, tensor in tensors.items())


def test_files_of_a_mac_and_hidden_ones_are_no_weights(copied: Path) -> None:
    # lmstudio-ai/lmstudio-bug-tracker#486: models on an exFAT disk
    tensors = load_file(copied / "model.safetensors")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (copied / f"._{name}").write_bytes(APPLE)
    (copied / ".model-old.safetensors").write_bytes(APPLE)
    assert holds(copied, tensors)
    tensors = shards(copied)
    (copied / "._model-1.safetensors").write_bytes(APPLE)
    assert holds(copied, tensors)


@pytest.mark.parametrize(
    "name", ["model_old.safetensors", "a.safetensors", "consolidated.safetensors",
             "adapter_model.safetensors", "model-00001-of-00001.safetensors"],
)  # fmt: skip
def test_model_safetensors_is_read_alone(copied: Path, name: str) -> None:
    # Blaizzy/mlx-vlm#1464, vllm-project/vllm#40765: the last name in order won
    tensors = load_file(copied / "model.safetensors")
    zero_copy(copied, name)
    assert holds(copied, tensors)
    reference = AutoModelForCausalLM.from_pretrained(copied).state_dict()
    assert torch.equal(reference["lm_head.weight"], Checkpoint(copied).read("lm_head.weight"))


@pytest.mark.parametrize("name", ["consolidated.00.safetensors", "zz.safetensors"])
def test_files_beside_shards_are_not_read(copied: Path, name: str) -> None:
    tensors = shards(copied)
    zero_copy(copied, name)
    assert holds(copied, tensors)


def test_a_single_file_beside_another_index_is_read_as_from_pretrained_does(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = load_file(copied / "model.safetensors")
    whole = (copied / "model.safetensors").read_bytes()
    shards(copied)
    zero_copy(copied, "model-4.safetensors")
    (copied / "model.safetensors").write_bytes(whole)
    assert holds(copied, tensors)
    assert "model.safetensors is read, not the files of the index" in caplog.text


def test_of_two_files_of_the_index_the_one_that_it_names_counts(copied: Path) -> None:
    tensors = shards(copied)
    index = json.loads((copied / INDEX_NAME).read_text())
    first, *_, last = sorted(set(index["weight_map"].values()))
    stale = load_file(copied / last)
    name = next(key for key, file in index["weight_map"].items() if file == first)
    save_file({**stale, name: torch.zeros_like(tensors[name])}, copied / last)
    assert holds(copied, tensors)
    del index["weight_map"][name]
    (copied / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="both hold"):
        Checkpoint(copied)


def test_shards_that_lost_their_index_are_read_when_all_are_there(copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    items = sorted(tensors.items())
    for number in range(3):
        save_file(dict(items[number::3]), copied / f"model-0000{number + 1}-of-00003.safetensors")
    zero_copy(copied, "consolidated.safetensors")
    assert holds(copied, tensors)
    (copied / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has 2 of 3 weight files"):
        Checkpoint(copied)


def test_the_file_that_the_config_names_is_read(copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").rename(copied / "mine.safetensors")
    zero_copy(copied, "model.safetensors")
    config = json.loads((copied / "config.json").read_text())
    config["transformers_weights"] = "mine.safetensors"
    (copied / "config.json").write_text(json.dumps(config))
    assert holds(copied, tensors)


def test_weights_may_be_links_into_a_store_of_blobs(copied: Path, tmp_path: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    blob = tmp_path / "blobs" / "6f1e"
    blob.parent.mkdir()
    shutil.move(copied / "model.safetensors", blob)
    (copied / "model.safetensors").symlink_to(blob)
    assert holds(copied, tensors)
    blob.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a link to"):
        Checkpoint(copied)


def test_empty_tensors_are_read(copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    extra = {"empty": torch.empty(0), "flat": torch.empty(3, 0, 2), "one": torch.tensor(7.0)}
    save_file({**tensors, **extra}, copied / "model.safetensors")
    assert holds(copied, {**tensors, **extra})
    assert Checkpoint(copied).read("flat", slice(1, 3)).shape == (2, 0, 2)
    load_model(copied, torch.bfloat16)


@pytest.mark.parametrize("name", ["model.safetensors", INDEX_NAME, "config.json"])
def test_a_clone_without_lfs_is_told_to_pull(copied: Path, name: str) -> None:
    # deepseek-ai/DeepSeek-V3#557, microsoft/OmniParser#34
    if name == INDEX_NAME:
        shards(copied)
    (copied / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match="git lfs pull"):
        Checkpoint(copied)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["a.safetensors", "b.safetensors"], "2 weight files .*tell which are the model's"),
        (["model-1-of-2.safetensors", "x-1-of-1.safetensors"], "tell which"),
        (["consolidated.safetensors"], "Mistral's own format"),
        (["adapter_model.safetensors"], "merge the adapter"),
        (["pytorch_model-00001-of-00002.bin"], "pickle"),
        (["model-Q4_K_M.gguf"], "GGUF"),
        (["._model.safetensors", "README.md"], r"no \*\.safetensors weights"),
    ],
)
def test_what_is_not_clear_is_refused(names: list[str], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        choose_weight_files("folder", names, None, {})


@pytest.mark.parametrize(
    ("names", "index", "config", "chosen"),
    [
        (["WEIGHTS.SAFETENSORS"], None, {}, ["WEIGHTS.SAFETENSORS"]),
        (["gptq_model-4bit-128g.safetensors"], None, {}, ["gptq_model-4bit-128g.safetensors"]),
        (["b.safetensors", "a.safetensors", "c.safetensors"],
         {"x": "b.safetensors", "y": "a.safetensors"}, {}, ["a.safetensors", "b.safetensors"]),
        (["model.safetensors", "b.safetensors"],
         {"x": "model.safetensors", "y": "b.safetensors"}, {},
         ["b.safetensors", "model.safetensors"]),
        (["model.safetensors"], None, {"transformers_weights": "../x.safetensors"},
         ["model.safetensors"]),
    ],
)  # fmt: skip
def test_what_is_clear_is_chosen(
    names: list[str], index: dict[str, str] | None, config: dict[str, Any], chosen: list[str]
) -> None:
    found = WeightMap(index) if index else None
    assert choose_weight_files("folder", names, found, config) == chosen


@pytest.mark.parametrize(
    ("kind", "side"),
    [("qweight", "quantize_config.json"), ("weight_scale", "hf_quant_config.json"),
     ("weight_scale_inv", None), ("weight.absmax", None), ("SCB", None)],
)  # fmt: skip
def test_old_quantized_checkpoints_are_refused_not_read_without_their_scales(
    copied: Path, kind: str, side: str | None
) -> None:
    # before quantization_config stood in config.json, AutoGPTQ and ModelOpt wrote a file beside it
    tensors = load_file(copied / "model.safetensors")
    name = next(key for key in tensors if key.endswith("q_proj.weight"))
    own = name.removesuffix("weight") + kind
    save_file({**tensors, own: torch.ones(4)}, copied / "model.safetensors")
    if side:
        (copied / side).write_text('{"bits": 4, "group_size": 128}')
    with pytest.raises(CheckpointError, match=f"{kind}, a part of quantized weights") as caught:
        load_model(copied, torch.bfloat16)
    assert side is None or side in str(caught.value)


@pytest.mark.parametrize("part", ["q_proj.weight", "experts.0.down_proj.weight"])
def test_codes_are_not_taken_for_weights(copied: Path, part: str) -> None:
    tensors = load_file(copied / "model.safetensors")
    codes = {k: v.to(torch.int8) if k.endswith(part) else v for k, v in tensors.items()}
    assert any(v.dtype == torch.int8 for v in codes.values())
    save_file(codes, copied / "model.safetensors")
    with pytest.raises(CheckpointError, match="whole numbers"):
        load_model(copied, torch.bfloat16).read_expert(ExpertId(0, 0))


def test_a_leftover_side_file_beside_plain_weights_is_harmless(copied: Path) -> None:
    (copied / "quantize_config.json").write_text('{"bits": 4}')
    load_model(copied, torch.bfloat16)


def test_end_tokens_and_sampling_come_from_generation_config(copied: Path) -> None:
    # InfiniTensor/InfiniLM#386, ml-explore/mlx-lm#701: a chat model's turn token stands only there
    values = {"eos_token_id": [1, 7], "temperature": 0.6, "top_p": 0.9, "top_k": 20}
    (copied / "generation_config.json").write_text(json.dumps(values))
    found = load_model(copied, torch.bfloat16).model.generation_config
    reference = AutoModelForCausalLM.from_pretrained(copied).generation_config
    assert {name: getattr(found, name) for name in values} == values
    assert found.to_dict() == reference.to_dict()


@pytest.mark.parametrize("text", ["{", "[]", '{"eos_token_id": ["</s>"]}', POINTER])
def test_a_generation_config_that_cannot_be_read_is_said(copied: Path, text: str) -> None:
    (copied / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        load_model(copied, torch.bfloat16)


# Heads and embeddings that config.json ties: huggingface/transformers#42612,
# where a head that was stored with its own values was overwritten by the embeddings.
def tie(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("stored", ["both", "alike", "head", "embeddings"])
def test_tied_weights_are_those_of_from_pretrained(copied: Path, stored: str) -> None:
    tensors = load_file(copied / "model.safetensors")
    embeddings = "model.embed_tokens.weight"
    if stored == "alike":
        tensors["lm_head.weight"] = tensors[embeddings].clone()
    elif stored != "both":
        del tensors[embeddings if stored == "head" else "lm_head.weight"]
    tie(copied, tensors)
    found = load_model(copied, torch.bfloat16).model
    reference = AutoModelForCausalLM.from_pretrained(copied, dtype=torch.bfloat16)
    for name in (embeddings, "lm_head.weight"):
        assert torch.equal(found.get_parameter(name), reference.get_parameter(name)), name
    shared = found.get_parameter(embeddings) is found.get_parameter("lm_head.weight")
    assert shared == (stored != "both")


def test_a_head_that_is_stored_though_config_ties_it_is_said(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tie(copied, load_file(copied / "model.safetensors"))
    load_model(copied, torch.bfloat16)
    assert "config.json ties lm_head.weight" in caplog.text


def test_tensors_that_the_config_has_no_place_for_are_said(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # a num_hidden_layers of another size of the family: from_pretrained lists UNEXPECTED tensors
    config = json.loads((copied / "config.json").read_text()) | {"num_hidden_layers": 2}
    (copied / "config.json").write_text(json.dumps(config))
    load_model(copied, torch.bfloat16)
    assert "first model.layers.2." in caplog.text


def test_a_link_that_leads_nowhere_is_said(copied: Path) -> None:
    # infiniflow/ragflow#3584, debpalash/VoiceStudio#1056: a snapshot without its links' blobs
    for name in ("model.safetensors", "config.json"):
        (copied / name).rename(copied / "kept")
        (copied / name).symlink_to("../../blobs/0a1b")
        with pytest.raises(CheckpointError, match=rf"{name} is a link to .*0a1b.*cp -rL"):
            load_model(copied, torch.bfloat16)
        (copied / name).unlink()
        (copied / "kept").rename(copied / name)


def test_names_in_another_case_are_said(copied: Path) -> None:
    # copied by way of a file system that does not tell a from A
    shards(copied)
    first = min(copied.glob("model-*.safetensors"))
    first.rename(copied / first.name.upper())
    with pytest.raises(CheckpointError, match=f"first {first.name}: rename {first.name.upper()}"):
        load_model(copied, torch.bfloat16)
