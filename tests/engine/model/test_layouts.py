"""Checkpoints as hubs hold them: the engine's logits equal plain transformers' on each layout."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.config.settings import EngineConfig
from engine.device.cpu import CpuDevice
from engine.errors import CheckpointError
from engine.model.loader import load_model
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from engine.types import ExpertId
from tests.engine.families import VOCABULARY, save_tiny
from tests.engine.model.layouts import fused, read_tensors, write_tensors

FAMILIES = ("qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3")
PER_EXPERT = ("qwen3_moe", "deepseek_v3")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_an_expert_across_shards_is_read_in_place(family: str, dtype: str, tmp_path: Path) -> None:
    folder = save_tiny(family, tmp_path / "model")
    tensors = {name: tensor.to(DTYPES[dtype]) for name, tensor in read_tensors(folder).items()}
    write_tensors(folder, tensors, shards=3)
    with opened(folder) as engine:
        assert agrees(engine, plain(folder))
        assert engine.store.in_place
        assert len(engine.store.files) == 3


@pytest.mark.parametrize("family", PER_EXPERT)
def test_fused_experts_are_read_in_place(family: str, tmp_path: Path) -> None:
    folder = save_tiny(family, tmp_path / "model")
    tensors = fused(read_tensors(folder))
    assert any(name.endswith("experts.gate_up_proj") for name in tensors)
    write_tensors(folder, tensors, shards=2)
    with opened(folder) as engine:
        assert agrees(engine, plain(folder))
        assert engine.store.in_place


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("experts", ["bf16", "fp16", "fp32", "mixed", "mixed again"])
def test_dtypes_may_be_mixed_in_one_checkpoint(family: str, experts: str, tmp_path: Path) -> None:
    folder = save_tiny(family, tmp_path / "model")
    torch.manual_seed(1)
    mixed = {"mixed": ["fp16", "bf16", "fp32"], "mixed again": ["bf16", "fp32", "fp16"]}
    cycle = mixed.get(experts, [experts])
    tensors = {}
    for number, (name, tensor) in enumerate(sorted(read_tensors(folder).items())):
        own = cycle[number % len(cycle)] if ".experts" in name else "fp32"
        # values that bf16 cannot hold, so that a lost bit shows
        tensors[name] = (tensor.float() + 1e-4 * torch.randn(tensor.shape)).to(DTYPES[own])
    write_tensors(folder, tensors)
    model = plain(folder)
    if experts != "fp16":  # 16-bit records are fp16 only where all experts are
        round_experts(model, torch.bfloat16)
    with opened(folder) as engine:
        assert agrees(engine, model)
        assert engine.store.in_place == (experts in ("bf16", "fp16"))


def test_tensors_without_a_place_in_the_model_are_left_out(tmp_path: Path) -> None:
    folder = save_tiny("deepseek_v3", tmp_path / "model")
    tensors = read_tensors(folder)
    extra = {
        name.replace("layers.2.", "layers.3."): tensor
        for name, tensor in tensors.items()
        if "layers.2." in name  # as DeepSeek-V3 brings a layer that predicts further tokens
    }
    write_tensors(folder, {**tensors, **extra}, shards=2)
    with opened(folder) as engine:
        assert engine.facts.moe_layers == 2
        assert agrees(engine, plain(folder))


def test_a_fused_tensor_of_too_few_experts_is_refused(tmp_path: Path) -> None:
    """Else the last expert would be made of the bytes behind it."""
    folder = save_tiny("qwen3_moe", tmp_path / "model")
    tensors = {
        name: tensor[:-1] if ".experts." in name else tensor
        for name, tensor in fused(read_tensors(folder)).items()
    }
    write_tensors(folder, tensors)
    model = load_model(folder, torch.bfloat16)
    model.read_expert(ExpertId(0, 6))
    with pytest.raises(CheckpointError, match=r"has shape .*, and its part 7 is asked for"):
        model.read_expert(ExpertId(0, 7))


@contextlib.contextmanager
def opened(folder: Path, **settings: Any) -> Iterator[Engine]:
    """An engine on this folder, configured in float32 unless told otherwise."""
    engine = Engine(folder, CpuDevice(), folder / "cache")
    base = {"compute.dtype": "float32", "cache.expert_bytes": "50%", "kv.max_tokens": 64}
    try:
        engine.configure(EngineConfig().overlay({**base, **settings}))
        yield engine
    finally:
        engine.close()


def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def round_experts(model: Any, dtype: torch.dtype) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".experts." in name:
                parameter.copy_(parameter.to(dtype))


def agrees(engine: Engine, model: Any) -> bool:
    """Whether all logits of a prompt are within 1e-4 of the largest."""
    tokens = torch.randint(3, VOCABULARY, (1, 17), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected = model(tokens).logits[0]
    found = engine.prefill([MicroBatch(tokens.clone(), keep=17)])[0][0]
    return bool((found - expected).abs().max() <= 1e-4 * expected.abs().max())
