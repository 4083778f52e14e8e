"""Numbers of a config.json that no model has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from engine.errors import CheckpointError
from engine.model.config_numbers import check_numbers
from engine.model.facts import describe
from engine.model.loader import load_model

PLACE = Path("config.json")


@pytest.mark.parametrize(
    ("key", "given"),
    [
        *[("num_hidden_layers", given) for given in (0, -1, 1.5, True, "3", 10**8)],
        *[("hidden_size", given) for given in (0, -64, 64.0, "sixty-four", 2**62)],
        *[("num_attention_heads", given) for given in (0, -4)],
        *[("num_key_value_heads", given) for given in (0, [2, 0])],
        *[("num_experts_per_tok", given) for given in (0, -1)],
        *[("num_experts", given) for given in (0, 10**9)],
        *[("vocab_size", given) for given in (0, 10**12)],
        *[("rope_theta", given) for given in (0, "x", float("nan"))],
        ("head_dim", 0),
        ("moe_intermediate_size", -3),
        ("max_position_embeddings", -1),
        ("kv_lora_rank", -1),
    ],
)
def test_a_number_out_of_its_range_is_named_with_what_is_allowed(key: str, given: object) -> None:
    for place, config in (key, {key: given}), (f"text_config.{key}", {"text_config": {key: given}}):
        with pytest.raises(CheckpointError, match=rf"config\.json: {place} is .* it must be a "):
            check_numbers(PLACE, config)


def test_key_value_heads_divide_the_heads() -> None:
    check_numbers(PLACE, {"num_attention_heads": 4, "num_key_value_heads": 2})
    with pytest.raises(CheckpointError, match="is 3, it must be a divisor of 4 attention heads"):
        check_numbers(PLACE, {"num_attention_heads": 4, "num_key_value_heads": 3})


def test_defaults_and_values_by_layer_are_allowed() -> None:
    check_numbers(PLACE, {"head_dim": None, "moe_topk": [2, 3], "num_key_value_heads": [1, None]})


def open_with(tiny_folder: Path, folder: Path, **changes: object) -> None:
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    describe(load_model(folder, torch.bfloat16, weights=False), "tiny", "local")


def test_a_hundred_million_layers_are_refused_before_any_is_built(
    tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="num_hidden_layers is 100000000"):
        open_with(tiny_folder, tmp_path / "model", num_hidden_layers=10**8)


def test_no_more_experts_are_chosen_than_there_are(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"num_experts_per_tok is 99, but a layer has 8 exp"):
        open_with(tiny_folder, tmp_path / "model", num_experts_per_tok=99)
