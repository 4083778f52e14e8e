"""Sensitivities of layers: each equals the divergence of a run with that layer alone coarser."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.config.settings import EngineConfig
from engine.errors import UsageError
from engine.evaluate.sensitivity import measure_sensitivities
from engine.precision.allocate import save_sensitivities, sensitivities_path
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch

BASE = EngineConfig().overlay({"compute.dtype": "float32", "kv.max_tokens": 128})
TOKENS = torch.randint(3, 290, (128,), generator=torch.Generator().manual_seed(2)).tolist()


def log_probabilities(engine: Engine, config: EngineConfig) -> torch.Tensor:
    engine.configure(config)
    batches = [MicroBatch(torch.tensor([TOKENS[start : start + 64]]), keep=0) for start in (0, 64)]
    logits = [engine.prefill([batch])[0][0] for batch in batches]
    return torch.log_softmax(torch.cat(logits).float(), dim=-1)


def test_each_layer_alone_diverges_as_measured(engine: Engine) -> None:
    found = measure_sensitivities(engine, TOKENS, (4, 2), BASE)
    reference = log_probabilities(engine, BASE)
    layers = engine.facts.moe_layers
    assert len(found) == layers
    for layer in range(layers):
        assert 0 < found[layer][4] < found[layer][2]
        table = ["2" if number == layer else "g" for number in range(layers)]
        planned = {"precision.scheme": "by_layer", "precision.options.table": table}
        own = log_probabilities(engine, BASE.overlay(planned))
        expected = (reference.exp() * (reference - own)).sum(-1).mean()
        assert found[layer][2] == pytest.approx(float(expected), rel=1e-3)


def test_a_plan_by_sensitivity_runs_and_diverges_less(engine: Engine, tmp_path: Path) -> None:
    losses = measure_sensitivities(engine, TOKENS, (4, 2), BASE)
    reference = log_probabilities(engine, BASE)
    path = sensitivities_path(engine.cache_folder, engine.facts, BASE)
    save_sensitivities(path, losses)

    def divergence(overlay: dict[str, object]) -> float:
        own = log_probabilities(engine, BASE.overlay(overlay))
        return float((reference.exp() * (reference - own)).sum(-1).mean())

    average = 2 + 2 / engine.facts.moe_layers  # one layer keeps 4 bits
    planned = divergence(
        {"precision.scheme": "by_sensitivity", "precision.options.average_bits": average}
    )
    assert engine.live.config.precision.options["table"].count("4") == 1
    assert planned < divergence({"precision.bits": 2})


def test_a_text_that_is_too_short_is_refused(engine: Engine) -> None:
    with pytest.raises(UsageError, match="at least 64 tokens"):
        measure_sensitivities(engine, TOKENS[:20], (4,), BASE)
