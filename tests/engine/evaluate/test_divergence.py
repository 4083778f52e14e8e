"""Divergence in prefill mode: chunked, against plain transformers, and None without a reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.config.settings import EngineConfig
from engine.evaluate import scoring
from engine.evaluate.divergence import diverge, reference_path
from engine.run.engine import Engine
from engine.types import Phase

BASE = {"compute.dtype": "float32", "cache.expert_bytes": "40%", "kv.max_tokens": 200}
TOKENS = [(7 * number) % 280 + 3 for number in range(45)]
PHASES: tuple[Phase, ...] = ("decode", "prefill")


@pytest.mark.parametrize("phase", PHASES)
def test_the_reference_is_plain_transformers_for_every_token(
    engine: Engine, tiny_folder: Path, tmp_path: Path, phase: Phase
) -> None:
    engine.configure(EngineConfig().overlay({**BASE, "prefill.chunk_tokens": 16}))
    diverge(engine, TOKENS, tmp_path, phase, reference=True)
    kept = np.load(reference_path(engine, TOKENS, tmp_path, phase))
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = torch.log_softmax(model(torch.tensor([TOKENS])).logits[0], dim=-1)
    assert np.abs(kept - expected.numpy()).max() < 1e-4


def test_prefill_never_holds_more_rows_than_the_logit_budget(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.configure(EngineConfig().overlay({**BASE, "prefill.chunk_tokens": 16}))
    monkeypatch.setattr(scoring, "LOGIT_BYTES", 8 * engine.facts.vocabulary * 5)
    assert scoring.scored_chunk(engine, len(TOKENS)) == 5
    diverge(engine, TOKENS, tmp_path, "prefill", reference=True)
    divergence = diverge(engine, TOKENS, tmp_path, "prefill", reference=False)
    assert divergence is not None
    assert divergence.kld_mean == pytest.approx(0, abs=1e-6)
    assert divergence.top1_agreement == 1


def test_a_mode_without_a_reference_is_not_measured(engine: Engine, tmp_path: Path) -> None:
    engine.configure(EngineConfig().overlay(BASE))
    diverge(engine, TOKENS, tmp_path, "decode", reference=True)
    assert diverge(engine, TOKENS, tmp_path, "prefill", reference=False) is None
    assert diverge(engine, TOKENS, tmp_path, "decode", reference=False) is not None
