"""Scores on the engine against plain transformers, item by item."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.config.settings import EngineConfig
from engine.errors import InfeasibleError
from engine.evaluate.scoring import Continuation, score
from engine.run.engine import Engine
from engine.run.layer_by_layer import LayerWise, UnknownHeadError

BASE = {"compute.dtype": "float32", "cache.expert_bytes": "40%", "kv.max_tokens": 200}


@pytest.mark.parametrize("chunk", [7, 256])
def test_scores_equal_plain_transformers_item_by_item(
    engine: Engine, tiny_folder: Path, chunk: int
) -> None:
    engine.configure(EngineConfig().overlay({**BASE, "prefill.chunk_tokens": chunk}))
    generator = torch.Generator().manual_seed(3)
    lengths = [(1, 1), (5, 3), (30, 1), (12, 40), (5, 3), (63, 20)]
    items = [
        Continuation(*(tuple(torch.randint(3, 290, (n,), generator=generator).tolist())
                       for n in pair))
        for pair in lengths
    ]  # fmt: skip
    items.append(Continuation(items[2].context, (items[2].target[0] ^ 1,)))
    reference = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    for item, result in zip(items, score(engine, items), strict=True):
        with torch.no_grad():
            logits = reference(torch.tensor([item.input])).logits[0, len(item.context) - 1 :]
        rows = torch.log_softmax(logits, dim=-1)
        target = torch.tensor(item.target)
        expected = float(rows.gather(1, target[:, None]).sum())
        assert result.log_likelihood == pytest.approx(expected, abs=1e-3)
        assert result.greedy == bool((rows.argmax(-1) == target).all())


def test_requests_with_one_input_run_once(engine: Engine) -> None:
    engine.configure(EngineConfig().overlay(BASE))
    groups: list[set[int]] = []
    score(
        engine,
        [Continuation((3, 4, 5), (token,)) for token in range(4, 20)],
        lambda scores: groups.append(set(scores)),
    )
    assert groups == [set(range(16))]
    assert sum(engine.residency.counters.misses.values()) <= 3 * 3 * 2


@pytest.mark.parametrize("error", [UnknownHeadError("tiny"), InfeasibleError("no room")])
def test_a_pass_that_breaks_off_leaves_nothing_in_the_scores(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    engine.configure(EngineConfig().overlay(BASE))
    items = [Continuation(tuple(range(3, 3 + n)), (7, 8)) for n in (4, 20, 40)]
    expected = score(engine, items)
    run = LayerWise.run

    def broken(self: LayerWise, *arguments: object, **named: object) -> None:
        run(self, *arguments, **named)  # type: ignore[arg-type]
        raise error

    monkeypatch.setattr(LayerWise, "run", broken)
    for one, other in zip(expected, score(engine, items), strict=True):
        assert other.log_likelihood == pytest.approx(one.log_likelihood, abs=1e-3)
