"""Decoding an attention layer in one call: the bits of its own forward, or its own forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config.settings import EngineConfig
from engine.device.cpu import CpuDevice
from engine.native.library import Threads
from engine.run import native_pass
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from engine.run.native_pass import NativePass
from tests.engine.families import each_family, save_tiny
from tests.requirements import require_native

require_native()

# attention of another structure: latent, recurrent, sinks, partial rotation, ...
USUAL = (
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
    "phimoe",
    "granitemoe",
    "dots1",
    "glm4_moe",
)


def decoded(folder: Path, cache: Path, **values: Any) -> list[torch.Tensor]:
    """Logits of two sequences: a prompt, then four tokens, one by one."""
    engine = Engine(folder, CpuDevice(), cache)
    try:
        engine.configure(EngineConfig().overlay({"batch.size": 2, "kv.max_tokens": 40, **values}))
        batch = MicroBatch(torch.arange(4, 28).view(2, 12))
        found = engine.prefill([batch])
        for token in (5, 9, 11, 3):
            batch.tokens = torch.tensor([[token], [token + 1]])
            found += engine.forward([batch], "decode")
        return found
    finally:
        engine.close()


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("family", each_family())
def test_every_family_decodes_the_same_bits_with_and_without_it(
    family: str, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny(family, tmp_path / "model")
    monkeypatch.setattr(NativePass, "of", lambda model: None)  # it takes the same steps
    calls = []
    step = Threads.step
    monkeypatch.setattr(Threads, "step", lambda self, *a: calls.append(1) or step(self, *a))
    values = {"precision.non_expert_bits": bits, "precision.bits": 8}
    found = decoded(folder, tmp_path / "a", **values)
    tried = 6  # at most, two widths of three layers
    assert (len(calls) > tried) == (family in USUAL), f"{family}: {len(calls)} calls"
    monkeypatch.setattr(native_pass, "use_native_steps", lambda model: None)
    expected = decoded(folder, tmp_path / "a", **values)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_mask_or_quantized_keys_leave_it_to_the_module(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    step = Threads.step
    monkeypatch.setattr(Threads, "step", lambda self, *a: calls.append(1) or step(self, *a))
    engine = Engine(tiny_folder, CpuDevice(), tmp_path)
    engine.configure(EngineConfig().overlay({"kv.bits": 8}))
    calls.clear()  # those of trying it
    batch = MicroBatch(torch.arange(4, 12)[None])
    engine.prefill([batch])
    batch.tokens = torch.tensor([[5]])
    engine.forward([batch], "decode")
    assert not calls
    engine.close()
