"""The non-expert weights at 8 and 4 bits, and embeddings on the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from engine.config.exactness import lossy_settings
from engine.config.settings import EngineConfig
from engine.device.cpu import CpuDevice
from engine.experts.encoding.quantization import dequantize, quantize
from engine.files import studies_folder
from engine.layout.non_expert import NonExpertMatrix, block_rows, non_expert_matrix_bytes
from engine.layout.record import Part, resolve_group_size
from engine.memory.plan import resolve
from engine.model.non_expert import HostEmbedding, quantizable_linears
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from engine.run.non_expert import NonExpertSettings
from engine.run.quantized_linear import NonExpertQuantizer, QuantizedLinear
from tests.engine.families import EXTRA, save_tiny
from tests.engine.model.test_layouts import agrees, opened

FAMILIES = ("qwen3_moe", "gpt_oss", "deepseek_v3", "jamba", "qwen3_next")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", [8, 4])
def test_logits_equal_plain_transformers_on_rounded_non_expert_weights(
    family: str, bits: int, tmp_path: Path
) -> None:
    folder = save_tiny(family, tmp_path / "model")
    settings = {"precision.non_expert_bits": bits, "kernel.name": "dequantize"}
    with opened(folder, **settings) as engine:
        group = engine.live.config.precision.group_size
        replaced = {
            name
            for name, module in engine.model.model.named_modules()
            if isinstance(module, QuantizedLinear)
        }
        assert agrees(engine, rounded(folder, bits, group, replaced))
        assert replaced == set(engine.model.linears)
        assert any("self_attn" in name for name in replaced)
        assert "lm_head" in replaced
        assert not any("embed" in name or "router" in name for name in replaced)


def test_only_what_may_be_quantized_is(tmp_path: Path) -> None:
    for family in EXTRA:
        folder = save_tiny(family, tmp_path / family)
        model = AutoModelForCausalLM.from_pretrained(folder)
        routers = [m for name, m in model.named_modules() if name.endswith((".gate", ".router"))]
        found = quantizable_linears(model, routers)
        assert not [name for name in found if name.endswith((".gate", ".router", "expert_gate"))]
        tied = model.config.get_text_config().tie_word_embeddings
        assert ("lm_head" in found) != tied, family


def test_a_tied_head_stays_and_so_do_its_embeddings(tmp_path: Path) -> None:
    folder = save_tiny("qwen3_moe", tmp_path / "model", tie_word_embeddings=True)
    settings = {"precision.non_expert_bits": 4, "kernel.name": "dequantize"}
    with opened(folder, **settings) as engine:
        model = engine.model.model
        assert model.lm_head.weight is model.get_input_embeddings().weight
        assert engine.facts.embedding_bytes == 0


def test_memory_counts_the_non_expert_weights(tmp_path: Path) -> None:
    folder = save_tiny("qwen3_moe", tmp_path / "model")
    engine = Engine(folder, CpuDevice(), folder / "cache")
    try:
        for bits in (16, 8, 4):
            config = EngineConfig().overlay(
                {"precision.non_expert_bits": bits, "kernel.name": "dequantize"}
            )
            _, plan = engine.configure(config)
            tensors = [*engine.model.model.parameters(), *engine.model.model.buffers()]
            held = sum(t.numel() * t.element_size() for t in tensors if t.dtype != torch.float32)
            rest = sum(t.numel() * 2 for t in tensors if t.dtype == torch.float32)
            assert plan.non_expert_bytes == held + rest
    finally:
        engine.close()


def test_a_large_matrix_is_cut_into_blocks() -> None:
    assert block_rows(100, 50) == [100]
    rows = block_rows(151_936, 2048)
    assert sum(rows) == 151_936
    assert all(count % 64 == 0 for count in rows)
    assert max(rows) * 2048 <= 1 << 23
    head = NonExpertMatrix(151_936, 2048, 1)
    assert non_expert_matrix_bytes(head, 4, 64) < 151_936 * 2048 * 0.6


def test_blocks_multiply_like_one_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.layout.non_expert._BLOCK_ELEMENTS", 64 * 96)
    linear = nn.Linear(96, 200)
    weight = linear.weight.detach()
    settings = NonExpertSettings("bfloat16", 4, 32)
    made = NonExpertQuantizer(settings, {}, crossover=128)(linear, weight)
    x = torch.randn(2, 3, 96)
    plain = dequantize(quantize(weight, 4, 32), 4, 32)
    assert len(list(made.buffers())) == 4
    assert torch.allclose(made(x), x @ plain.t() + linear.bias, atol=1e-5)


def test_quality_depends_on_non_expert_bits() -> None:
    keys = [
        lossy_settings(EngineConfig().overlay({"precision.non_expert_bits": bits}))
        for bits in (16, 8, 4)
    ]
    assert all(key not in keys[:number] for number, key in enumerate(keys))


def test_host_embeddings_stay_when_the_model_moves() -> None:
    plain = nn.Embedding(10, 4)
    host = HostEmbedding(plain)
    holder = nn.Sequential(host)
    holder.to("meta")
    ids = torch.tensor([[1, 2]])
    assert torch.equal(host(ids), plain(ids))


def test_host_embeddings_leave_the_budget_of_an_accelerator_only(tmp_path: Path) -> None:
    folder = save_tiny("qwen3_moe", tmp_path / "model")
    with opened(folder, **{"placement.embeddings": "host"}) as engine:
        assert any(note.startswith("placement.embeddings") for note in engine.live.inactive)
        facts = engine.facts
    for device, saved in (("cpu", 0), ("cuda:0", facts.embedding_bytes)):
        plans = [
            resolve(EngineConfig().overlay({"device.name": device, **where}), facts)[1]
            for where in ({}, {"placement.embeddings": "host"})
        ]
        assert plans[0].non_expert_bytes - plans[1].non_expert_bytes == saved
    assert facts.embedding_bytes == 128 * 64 * 2


def rounded(folder: Path, bits: int, wanted: int, names: set[str]) -> Any:
    """Plain transformers in float32, the named layers' weights as these bits hold them."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        for name in names:
            weight = model.get_submodule(name).weight
            group = resolve_group_size((Part("w", tuple(weight.shape)),), wanted)
            own = bits if group else 8
            weight.copy_(dequantize(quantize(weight, own, group), own, group))  # type: ignore[arg-type]
    return model


def test_sequences_of_one_batch_get_the_logits_that_each_gets_alone(tmp_path: Path) -> None:
    """The head sees the last rows of a batch, which do not lie together."""
    settings = {"precision.non_expert_bits": 8, "kv.max_tokens": 64, "batch.size": 2}
    demo = studies_folder() / "demo" / "model"
    engine = Engine(demo, CpuDevice(), tmp_path)
    try:
        engine.configure(EngineConfig().overlay(settings))
        prompts = torch.arange(5, 45).view(2, 20)
        together = engine.prefill([MicroBatch(prompts)])[0][:, -1].clone()
        alone = [engine.prefill([MicroBatch(one[None])])[0][:, -1].clone() for one in prompts]
    finally:
        engine.close()
    assert torch.allclose(together, torch.cat(alone), atol=0.05 * float(together.abs().max()))
    assert torch.equal(together.argmax(-1), torch.cat(alone).argmax(-1))


def test_a_kernel_that_cannot_run_here_is_listed_with_the_reason(tmp_path: Path) -> None:
    folder = save_tiny("qwen3_moe", tmp_path / "model")
    for name, bits, reason in (
        ("cuda_int4", 4, "it runs on CUDA, not on cpu"),
        ("torch_int8", 4, "it reads codes of 8 bits, not of 4"),
        ("torch_int4", 16, "nothing here is stored as codes that it reads"),
    ):
        with opened(folder, **{"kernel.name": name, "precision.bits": bits}) as engine:
            assert f"kernel.name = {name}: inactive, {reason}" in engine.live.inactive
    with opened(folder, **{"kernel.name": "auto", "precision.bits": 4}) as engine:
        assert not any(note.startswith("kernel.name") for note in engine.live.inactive)
