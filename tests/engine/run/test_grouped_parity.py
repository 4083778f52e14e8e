"""Whole models through grouped launches on a staged device: the tokens of the CPU.

Marked `triton`: the programs run in triton's interpreter (make triton).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config.settings import EngineConfig
from engine.device.base import Device
from engine.device.cpu import CpuDevice
from engine.experts.kernels.grouped.experts import GroupedExperts
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from tests.engine.families import EXTRA, save_tiny
from tests.engine.model.layouts import quantize_mxfp4
from tests.fakes.staged_device import StagedDevice

pytestmark = [pytest.mark.triton, pytest.mark.slow]
TOLERANCE = 1e-4  # of the largest logit, in float32: the order of sums differs
FEW, MANY = 6, 66  # tokens of a prompt, with two experts each: rows are searched, sorted


@pytest.fixture(autouse=True)
def interpreted() -> None:
    pytest.importorskip("triton", reason="needs the extra gpu")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("without CUDA it needs TRITON_INTERPRET=1")


def generated(
    folder: Path, cache: Path, device: Device, tokens_of_prompt: int = FEW, **settings: Any
) -> tuple[list[int], torch.Tensor, Any]:
    """Greedy tokens after a prompt, their logits [n, V], and what computes experts together."""
    engine = Engine(folder, device, cache)
    base = {
        "compute.dtype": "float32",
        "cache.expert_bytes": "60%",
        "kv.max_tokens": 128,
        "prefill.chunk_tokens": MANY,
    }
    engine.configure(EngineConfig().overlay({**base, **settings}))
    generator = torch.Generator().manual_seed(7)
    batch = MicroBatch(torch.randint(3, 128, (1, tokens_of_prompt), generator=generator))
    logits, tokens = [engine.prefill([batch])[0][0, -1]], []
    for _ in range(2):
        tokens.append(int(logits[-1].argmax()))
        batch.tokens = torch.tensor([tokens[-1:]])
        logits.append(engine.forward([batch], "decode")[0][0, -1])
    fused = engine.live.runtime._fused
    engine.close()
    return tokens, torch.stack(logits), fused


def check(folder: Path, cache: Path, tokens_of_prompt: int = FEW, **settings: Any) -> None:
    tokens, logits, _ = generated(folder, cache, CpuDevice(), tokens_of_prompt, **settings)
    own, own_logits, fused = generated(folder, cache, StagedDevice(), tokens_of_prompt, **settings)
    assert isinstance(fused, GroupedExperts)
    assert own == tokens
    assert (own_logits - logits).abs().max() <= TOLERANCE * logits.abs().max()


@pytest.mark.parametrize("bits", [16, 8, 4, 3, 2])
def test_every_precision_gives_the_tokens_of_the_cpu(
    tiny_folder: Path, tmp_path: Path, bits: int
) -> None:
    check(tiny_folder, tmp_path, **{"precision.bits": bits})


def test_a_prompt_whose_rows_are_sorted_gives_the_tokens_of_the_cpu(
    tiny_folder: Path, tmp_path: Path
) -> None:
    check(tiny_folder, tmp_path, MANY, **{"precision.bits": 4})


@pytest.mark.parametrize("family", sorted(EXTRA))
def test_every_family_gives_the_tokens_of_the_cpu(family: str, tmp_path: Path) -> None:
    check(save_tiny(family, tmp_path / "model"), tmp_path)


def test_published_mxfp4_codes_give_the_tokens_of_the_cpu(tmp_path: Path) -> None:
    folder = save_tiny("gpt_oss", tmp_path / "model")
    quantize_mxfp4(folder)
    check(folder, tmp_path, **{"precision.bits": "prequantized"})


def test_few_slots_before_a_host_tier_give_the_tokens_of_the_cpu(
    tiny_folder: Path, tmp_path: Path
) -> None:
    check(tiny_folder, tmp_path, **{"cache.expert_bytes": "20%", "host.bytes": 10**9})


def test_another_kernel_that_is_named_is_the_one_that_multiplies(
    tiny_folder: Path, tmp_path: Path
) -> None:
    for name in ("dequantize", "native", "torch_int4"):
        _, _, fused = generated(
            tiny_folder, tmp_path, StagedDevice(), **{"kernel.name": name, "precision.bits": 4}
        )
        assert not isinstance(fused, GroupedExperts)
