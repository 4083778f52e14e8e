"""The twin computes what the original computes, in well-formed shards."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from scripts.widen_model import INDEX_NAME, Factors, WidenError, widen


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original") / "model"
    config = Qwen3MoeConfig(
        vocab_size=96,
        hidden_size=16,
        intermediate_size=24,
        moe_intermediate_size=8,
        num_hidden_layers=3,
        mlp_only_layers=[1],
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        attention_bias=True,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    save(Qwen3MoeForCausalLM(config), folder)
    (folder / "tokenizer_config.json").write_text("{}\n")
    return folder


@pytest.fixture(scope="module")
def olmoe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("olmoe") / "model"
    config = OlmoeConfig(
        vocab_size=96,
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=8,
        num_experts_per_tok=2,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    save(OlmoeForCausalLM(config), folder)
    return folder


def save(model: PreTrainedModel, folder: Path) -> None:
    """Saves it with norms and biases that are not all alike."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)


def run(folder: Path) -> tuple[Tensor, list[Tensor]]:
    """Logits [1, T, vocabulary] and each sparse layer's router choices [T, K]."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    choices: list[Tensor] = []
    for layer in model.model.layers:
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.register_forward_hook(lambda _m, _i, out: choices.append(out[2]))
    ids = torch.arange(40).remainder(96)[None]
    with torch.no_grad():
        logits: Tensor = model(ids).logits
    return logits, choices


@pytest.mark.parametrize("family", ["original", "olmoe"])
@pytest.mark.parametrize(("hidden", "expert"), [(1, 1), (2, 1), (1, 4), (4, 2)])
def test_the_twin_gives_the_same_logits_and_router_choices(
    request: pytest.FixtureRequest, tmp_path: Path, family: str, hidden: int, expert: int
) -> None:
    original: Path = request.getfixturevalue(family)
    widen(original, tmp_path / "twin", Factors(hidden, expert))
    logits, choices = run(original)
    twin_logits, twin_choices = run(tmp_path / "twin")
    torch.testing.assert_close(twin_logits, logits, rtol=1e-4, atol=1e-4)
    assert len(choices) == 2
    assert all(map(torch.equal, twin_choices, choices))


def test_expert_bytes_grow_by_the_product_of_the_factors(original: Path, tmp_path: Path) -> None:
    widen(original, tmp_path / "twin", Factors(4, 2))
    name = "model.layers.2.mlp.experts.7.down_proj.weight"
    assert _shapes(original)[name] == [16, 8]
    assert _shapes(tmp_path / "twin")[name] == [64, 16]


def test_the_index_names_every_tensor_once_and_shards_keep_to_their_size(
    original: Path, tmp_path: Path
) -> None:
    widen(original, tmp_path / "twin", Factors(2, 2), shard_bytes=20_000)
    index = json.loads((tmp_path / "twin" / INDEX_NAME).read_text())
    shards = sorted((tmp_path / "twin").glob("*.safetensors"))
    assert len(shards) > 2
    assert set(index["weight_map"].values()) == {path.name for path in shards}
    assert set(index["weight_map"]) == set(_shapes(original))
    total = 0
    for path in shards:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert all(index["weight_map"][name] == path.name for name in tensors)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        assert size <= 20_000
        total += size
    assert total == index["metadata"]["total_size"]


def test_other_files_are_copied_and_the_configuration_is_updated(
    original: Path, tmp_path: Path
) -> None:
    widen(original, tmp_path / "twin", Factors(2, 4))
    config = json.loads((tmp_path / "twin/config.json").read_text())
    assert (config["hidden_size"], config["moe_intermediate_size"]) == (32, 32)
    assert (config["head_dim"], config["num_local_experts"], config["intermediate_size"]) == (
        8,
        8,
        24,
    )
    assert (tmp_path / "twin/tokenizer_config.json").is_file()
    assert not (tmp_path / "twin.partial").exists()


@pytest.mark.parametrize(("hidden", "expert"), [(3, 1), (1, 6), (0, 1), (2, -2)])
def test_factors_that_are_no_powers_of_two_are_refused(
    original: Path, tmp_path: Path, hidden: int, expert: int
) -> None:
    with pytest.raises(WidenError, match="power of two"):
        widen(original, tmp_path / "twin", Factors(hidden, expert))
    assert not (tmp_path / "twin").exists()


def test_another_family_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mixtral"}))
    with pytest.raises(WidenError, match=r"'mixtral'.*qwen3_moe"):
        widen(tmp_path, tmp_path / "twin", Factors(2, 2))


def test_tied_embeddings_are_refused(tmp_path: Path) -> None:
    config = {"model_type": "qwen3_moe", "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WidenError, match="tied"):
        widen(tmp_path, tmp_path / "twin", Factors(2, 2))


def _shapes(folder: Path) -> dict[str, list[int]]:
    shapes: dict[str, list[int]] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return shapes
