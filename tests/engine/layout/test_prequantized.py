"""Checkpoints that are published quantized: read right at every precision, and kept as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from engine.errors import CheckpointError
from engine.experts.encoding.quantization import dequantize, quantize
from engine.experts.kernels.prequantized import matrix_values, prequantized_view
from engine.model.checkpoint import Checkpoint
from engine.model.loader import load_model
from engine.run.micro_batch import MicroBatch
from tests.engine.families import COMMON, EXTRA, save_tiny
from tests.engine.model.layouts import (
    Tensors,
    quantize_fp8,
    quantize_mxfp4,
    read_tensors,
    write_tensors,
)
from tests.engine.model.test_layouts import agrees, opened

# Blocks that divide the tiny shapes (32 x 64 a gate), and the published size, which cuts all of
# them short.
CASES = ["fp8 whole blocks", "fp8 cut blocks", "fp8 fused", "fp8 deepseek", "mxfp4"]


def publish(case: str, folder: Path) -> tuple[Path, Tensors]:
    """A quantized folder and the values that it stands for."""
    if case == "mxfp4":
        save_tiny("gpt_oss", folder)
        return folder, quantize_mxfp4(folder)
    save_tiny("deepseek_v3" if case == "fp8 deepseek" else "qwen3_moe", folder)
    block = {"fp8 whole blocks": (16, 32), "fp8 fused": (16, 16)}.get(case, (128, 128))
    if case == "fp8 cut blocks":
        block = (24, 40)
    return folder, quantize_fp8(folder, block, fuse=case == "fp8 fused")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_published_checkpoint_is_right_at_every_precision(
    case: str, bits: int, tmp_path: Path
) -> None:
    folder, values = publish(case, tmp_path / "model")
    nearest = {"precision.bits": bits, "precision.options.optimize": "none"}
    with opened(folder, **nearest) as engine:
        group = engine.live.config.precision.group_size
        assert agrees(engine, reference(folder, values, lambda w: rounded(w, bits, group)))


@pytest.mark.parametrize("case", CASES)
def test_tensors_read_as_their_values(case: str, tmp_path: Path) -> None:
    folder, values = publish(case, tmp_path / "model")
    checkpoint = Checkpoint(folder)
    assert checkpoint.prequantized
    for name in checkpoint.prequantized:
        assert torch.equal(checkpoint.read(name), values[name])
        assert torch.equal(checkpoint.read(name, slice(1, 2)), values[name][1:2])


@pytest.mark.parametrize("case", CASES)
def test_prequantized_records_hold_the_codes_of_the_checkpoint(case: str, tmp_path: Path) -> None:
    folder, values = publish(case, tmp_path / "model")
    with opened(folder, **{"precision.bits": "prequantized", "io.direct": "off"}) as engine:
        assert engine.facts.prequantized is not None
        precision = engine.live.config.precision
        assert (precision.prequantized, precision.bits) == (True, 4 if case == "mxfp4" else 8)
        assert agrees(engine, reference(folder, values, lambda w: w))
        record = engine.store.record
        scratch = memoryview(bytearray(engine.store.scratch_bytes() + 4096))
        for expert in engine.store.experts:
            raw = torch.zeros(record.size_bytes, dtype=torch.uint8)
            for piece in engine.store.chunks(expert, 1 << 20):
                end = piece.record_offset + piece.size_bytes
                target = memoryview(raw.numpy())[piece.record_offset : end]
                engine.store.read(expert, piece, target, scratch)
            own = engine.model.read_expert(expert)
            for part in record.parts:
                if part.kind == "matrix":
                    found = matrix_values(
                        prequantized_view(raw, record, part), engine.facts.prequantized
                    )
                    wanted = own[part.name].t() if part.transposed else own[part.name]
                    assert torch.equal(found, wanted)


def test_published_codes_are_read_in_place_where_their_bytes_allow(tmp_path: Path) -> None:
    for case in CASES:
        folder, _ = publish(case, tmp_path / case)
        with opened(folder, **{"precision.bits": "prequantized", "io.direct": "off"}) as engine:
            whole = case in ("mxfp4", "fp8 whole blocks", "fp8 fused")
            assert engine.store.in_place == whole, case
            assert (folder / "cache" / "packs").exists() != whole
            packed = engine.facts.expert_bytes["prequantized"]
            assert packed == engine.store.all_bytes < engine.facts.expert_bytes["16"]


def test_native_means_16_bits_where_nothing_is_quantized(tmp_path: Path) -> None:
    folder = save_tiny("qwen3_moe", tmp_path / "model")
    with opened(folder, **{"precision.bits": "prequantized"}) as engine:
        precision = engine.live.config.precision
        assert (precision.bits, precision.prequantized) == (16, False)


def test_a_run_may_hold_prequantized_and_lower_bits(tmp_path: Path) -> None:
    folder, _ = publish("fp8 whole blocks", tmp_path / "model")
    settings = {
        "precision.bits": "prequantized",
        "precision.scheme": "gate_threshold",
        "precision.low_bits": 4,
        "precision.low_bits_threshold": 0.0,
    }
    with opened(folder, **settings) as engine:
        tokens = torch.tensor([[5, 6, 7]])
        assert engine.prefill([MicroBatch(tokens)])[0].isfinite().all()
        assert {record.prequantized is None for record in engine.live.slots.records.values()} == {
            True,
            False,
        }


def test_codes_without_their_scales_are_refused(tmp_path: Path) -> None:
    folder, _ = publish("fp8 whole blocks", tmp_path / "model")
    tensors = read_tensors(folder)
    name = next(name for name in tensors if name.endswith("_scale_inv"))
    write_tensors(folder, {key: tensor for key, tensor in tensors.items() if key != name})
    with pytest.raises(CheckpointError, match=f"{name} of shape .* is missing"):
        load_model(folder, torch.bfloat16)
    write_tensors(folder, {**tensors, name: tensors[name][:1]})
    with pytest.raises(CheckpointError, match="which has shape"):
        load_model(folder, torch.bfloat16)


def rounded(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """[N, K] as a record of these bits holds it."""
    if bits == 16:
        return weight.to(torch.bfloat16).float()
    return dequantize(quantize(weight, bits, group), bits, group)  # type: ignore[arg-type]


def reference(folder: Path, values: Tensors, of_experts: Any) -> Any:
    """Plain transformers in float32 on these values, the experts' matrices [N, K] changed."""
    plain = folder.parent / "plain"
    family = Checkpoint(folder).config["model_type"]
    config = CONFIG_MAPPING[family](**{**COMMON, **EXTRA[family]})
    AutoModelForCausalLM.from_config(config).save_pretrained(plain)
    whole = {name: tensor.float() for name, tensor in values.items()}
    write_tensors(plain, whole)
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".experts." in name and parameter.ndim == 3:
                transposed = family == "gpt_oss"
                for expert in parameter:
                    weight = expert.t() if transposed else expert
                    changed = of_experts(weight)
                    expert.copy_(changed.t() if transposed else changed)
    return model
