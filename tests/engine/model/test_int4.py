"""int4 checkpoints as hubs hold them: read to the code, run as published, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.experts.kernels import native
from engine.experts.kernels.prequantized import matrix_values, prequantized_view
from engine.experts.tiers.pack import encode_expert
from engine.model.checkpoint import Checkpoint
from engine.types import ExpertId
from tests.engine.families import save_tiny
from tests.engine.layout.test_prequantized import reference, rounded
from tests.engine.model.int4_layouts import (
    Int4,
    publish_awq,
    publish_compressed,
    publish_gptq,
    words,
)
from tests.engine.model.layouts import Tensors, write_tensors
from tests.engine.model.test_layouts import agrees, opened
from tests.requirements import require_native

Publish = Callable[[Path], Tensors]
WIDE = {"hidden_size": 128, "head_dim": 32, "moe_intermediate_size": 128}
CASES: dict[str, tuple[str, Publish]] = {
    "gptq on mixtral": ("mixtral", publish_gptq),
    "gptq on qwen3_moe": ("qwen3_moe", lambda f: publish_gptq(f, symmetric=False)),
    "gptq_v2": ("qwen3_moe", lambda f: publish_gptq(f, symmetric=False, layout="gptq_v2")),
    "gptq of whole columns": ("qwen2_moe", lambda f: publish_gptq(f, -1)),
    "gptq on deepseek_v3": ("deepseek_v3", lambda f: publish_gptq(f, 8)),
    "awq on olmoe": ("olmoe", publish_awq),
    "awq on qwen2_moe": ("qwen2_moe", lambda f: publish_awq(f, 16)),
    "compressed symmetric": ("qwen3_moe", publish_compressed),
    "compressed asymmetric": ("qwen3_moe", lambda f: publish_compressed(f, symmetric=False)),
    "compressed asymmetric in fp16": (
        "qwen3_moe",
        lambda f: publish_compressed(f, symmetric=False, dtype=torch.float16, plain_zeros=True),
    ),
    "compressed by channel": (
        "qwen2_moe",
        lambda f: publish_compressed(f, -1, symmetric=False),
    ),
}
PUBLISHED = {"precision.bits": "prequantized"}


def written(case: str, folder: Path) -> tuple[Path, Tensors]:
    """A quantized folder and the values that it stands for."""
    family, publish = CASES[case]
    save_tiny(family, folder)
    return folder, publish(folder)


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_reads_as_its_codes_say(case: str, tmp_path: Path) -> None:
    folder, values = written(case, tmp_path / "model")
    checkpoint = Checkpoint(folder)
    assert set(checkpoint.tensors) == set(values)
    assert any(".experts." in name for name in checkpoint.prequantized)
    assert any("self_attn" in name for name in checkpoint.prequantized)
    for name in checkpoint.prequantized:
        assert torch.equal(checkpoint.read(name), values[name])
        assert torch.equal(checkpoint.read(name, slice(1, 2)), values[name][1:2])


@pytest.mark.parametrize("case", CASES)
def test_a_model_runs_on_the_codes_that_were_published(case: str, tmp_path: Path) -> None:
    folder, values = written(case, tmp_path / "model")
    with opened(folder, **PUBLISHED) as engine:
        assert engine.facts.prequantized is not None
        assert engine.facts.prequantized.name == "int4"
        precision = engine.live.config.precision
        assert (precision.prequantized, precision.bits) == (True, 4)
        assert agrees(engine, reference(folder, values, lambda w: w))
        assert not engine.store.in_place
        assert engine.facts.expert_bytes["prequantized"] == engine.store.all_bytes


@pytest.mark.parametrize("case", CASES)
def test_records_hold_every_code_scale_and_zero_point(case: str, tmp_path: Path) -> None:
    folder, _ = written(case, tmp_path / "model")
    with opened(folder, **PUBLISHED) as engine:
        record, published = engine.store.record, engine.facts.prequantized
        assert published is not None
        for expert in (ExpertId(0, 0), ExpertId(1, 7)):
            raw = encode_expert(engine.model, expert, record)
            own = engine.model.read_expert(expert)
            for part in record.parts:
                found = matrix_values(prequantized_view(raw, record, part), published)
                assert torch.equal(found, own[part.name])


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("case", ["gptq on mixtral", "awq on olmoe", "compressed asymmetric"])
def test_other_precisions_start_from_the_published_values(
    case: str, bits: int, tmp_path: Path
) -> None:
    folder, values = written(case, tmp_path / "model")
    with opened(folder, **{"precision.bits": bits, "precision.options.optimize": "none"}) as engine:
        group = engine.live.config.precision.group_size
        assert agrees(engine, reference(folder, values, lambda w: rounded(w, bits, group)))


@pytest.mark.parametrize("group", [128, 64, -1])
@pytest.mark.parametrize("publish", [publish_gptq, publish_awq, publish_compressed])
def test_wide_groups_are_kept_and_whole_rows_repeat_their_scale(
    publish: Any, group: int, tmp_path: Path
) -> None:
    folder = save_tiny("qwen3_moe", tmp_path / "model", **WIDE)
    values = publish(folder, group)
    with opened(folder, **PUBLISHED) as engine:
        assert engine.facts.prequantized is not None
        assert engine.facts.prequantized.block_columns == (128 if group == -1 else group)
        for name in engine.model.checkpoint.prequantized:
            assert torch.equal(engine.model.checkpoint.read(name), values[name])


def test_scales_of_float32_are_read_but_not_kept(tmp_path: Path) -> None:
    folder = save_tiny("qwen3_moe", tmp_path / "model")
    values = publish_compressed(folder, dtype=torch.float32)
    with opened(folder) as engine:
        assert engine.facts.prequantized is None
        for name in engine.model.checkpoint.prequantized:
            assert torch.equal(engine.model.checkpoint.read(name), values[name])


@pytest.mark.parametrize("case", ["gptq on qwen3_moe", "compressed symmetric"])
def test_the_native_products_multiply_by_exactly_the_published_values(
    case: str, tmp_path: Path
) -> None:
    require_native()
    folder, _ = written(case, tmp_path / "model")
    with opened(folder, **PUBLISHED) as engine:
        assert engine.kernel_support(engine.live.config).names == ("native",)
        record, published = engine.store.record, engine.facts.prequantized
        assert published is not None
        raw = encode_expert(engine.model, ExpertId(0, 3), record)
        for part in record.parts:
            view = prequantized_view(raw, record, part)
            matrix = native.published_matrix(view, published)
            assert matrix is not None
            found = native.plain(view, matrix, torch.float32)
            assert torch.equal(found, matrix_values(view, published))


def test_zero_points_less_one_borrow_from_their_neighbours(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    own = Int4(
        torch.randint(0, 16, (16, 64), generator=generator),
        torch.rand(16, 2, generator=generator).half(),
        torch.randint(0, 3, (16, 2), generator=generator),
    )
    assert bool((own.zeros == 0).any())
    stored = {
        "m.qweight": words(own.codes.t(), 0),
        "m.qzeros": words(own.zeros.t(), 1) - 0x11111111,
        "m.scales": own.scales.t(),
    }
    write_tensors(tmp_path, stored)
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False}
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "mixtral", "quantization_config": quantization})
    )
    assert torch.equal(Checkpoint(tmp_path).read("m.weight"), own.values())
