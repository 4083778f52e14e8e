"""Layer by layer: the same scores as token by token, and each expert read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.config.settings import EngineConfig
from engine.device.cpu import CpuDevice
from engine.errors import InfeasibleError
from engine.evaluate import scoring
from engine.evaluate.scoring import Continuation, score
from engine.memory.scoring import LAYER_WISE_SLOTS, layer_wise
from engine.run.engine import Engine
from engine.run.layer_by_layer import LayerWise, TextBatch, UnknownHeadError
from engine.run.micro_batch import MicroBatch
from engine.types import ExpertId
from tests.engine.families import VOCABULARY, each_family, save_tiny
from tests.engine.memory.test_plan import make_facts

BASE = {"compute.dtype": "float32", "cache.expert_bytes": "50%", "kv.max_tokens": 64}
LENGTHS = [(1, 1), (5, 3), (30, 1), (12, 9), (5, 3), (23, 20)]


def items() -> list[Continuation]:
    generator = torch.Generator().manual_seed(3)

    def some(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, VOCABULARY, (count,), generator=generator).tolist())

    return [Continuation(some(context), some(target)) for context, target in LENGTHS]


@pytest.fixture(scope="module", params=each_family())
def opened(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Engine, Path]]:
    folder = save_tiny(request.param, tmp_path_factory.mktemp(request.param))
    engine = Engine(folder, CpuDevice(), folder / "cache")
    yield engine, folder
    engine.close()


def test_scores_equal_plain_transformers_for_every_family(opened: tuple[Engine, Path]) -> None:
    engine, folder = opened
    engine.configure(EngineConfig().overlay(BASE))
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for item, result in zip(items(), score(engine, items()), strict=True):
        with torch.no_grad():
            logits = reference(torch.tensor([item.input])).logits[0, len(item.context) - 1 :]
        rows = torch.log_softmax(logits, dim=-1)
        expected = float(rows.gather(1, torch.tensor(item.target)[:, None]).sum())
        assert result.log_likelihood == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("bits", [16, 8, 4, 2])
def test_every_precision_equals_token_by_token(engine: Engine, bits: int) -> None:
    engine.configure(EngineConfig().overlay({**BASE, "precision.bits": bits}))
    for item, result in zip(items(), score(engine, items()), strict=True):
        assert result.log_likelihood == pytest.approx(token_by_token(engine, item), abs=1e-3)


def token_by_token(engine: Engine, item: Continuation) -> float:
    """Sum of log-probabilities, one decode step a token."""
    batch, total = MicroBatch(torch.empty(1, 0, dtype=torch.long)), 0.0
    wanted = (*item.context, *item.target)[1:]
    for position, token in enumerate(item.input):
        batch.tokens = torch.tensor([[token]])
        logits = engine.forward([batch], "decode")[0][0, -1]
        if position >= len(item.context) - 1:
            total += float(torch.log_softmax(logits.float(), dim=-1)[wanted[position]])
    return total


def test_each_expert_is_read_once_whatever_the_number_of_slots(engine: Engine) -> None:
    engine.configure(EngineConfig().overlay(BASE))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 290, (4, 24), generator=generator)
    batch = TextBatch(tokens, lengths=(24, 20, 24, 3), wanted=(23, 0, 5, 0))
    routed: Counter[ExpertId] = Counter()
    seen: list[tuple[int, int, int]] = []
    count = engine.facts.experts

    def note(layer: int, number: int, index: torch.Tensor) -> None:
        assert (index.view(4, 24, -1)[3, 3:] == count).all()  # padding chooses nobody
        for expert in set(index.unique().tolist()) - {count}:
            routed[ExpertId(layer, expert)] += 1

    with engine.layer_wise(24) as passing:
        passing.run(
            [batch, batch],
            lambda number, row, first, logits: seen.append((number, row, len(logits))),
            on_routed=note,
        )
        assert set(passing.reads.values()) == {1}
        assert {expert for expert, _ in passing.reads} == set(routed)
        assert len(routed) > LAYER_WISE_SLOTS
    positions: Counter[tuple[int, int]] = Counter()
    for number, row, pieces in seen:
        positions[number, row] += pieces
    assert positions == {(n, r): c for n in (0, 1) for r, c in enumerate((1, 20, 19, 3))}
    assert engine.config is not None
    assert engine.config.cache.scope == "layer"  # as before


def test_a_variant_sees_its_own_precision(engine: Engine) -> None:
    engine.configure(EngineConfig().overlay({**BASE, "precision.bits": 4}))
    tokens = torch.randint(3, 290, (1, 16), generator=torch.Generator().manual_seed(1))
    found: dict[int, torch.Tensor] = {}

    def keep(number: int, row: int, first: int, logits: torch.Tensor) -> None:
        found[number] = logits

    batches = [TextBatch(tokens, (16,), (0,), variant) for variant in (0, 1, 0)]
    with engine.layer_wise(16, extra_bits=(16,)) as passing:
        passing.run(batches, keep, bits_of=lambda variant, expert: 16 if variant else 4)
        assert {bits for _, bits in passing.reads} == {16, 4}
    assert torch.allclose(found[0], found[2], atol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


def test_what_depends_on_the_cache_takes_the_ordinary_loop(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Engine, longest: int) -> Any:
        raise AssertionError("layer by layer")

    monkeypatch.setattr(Engine, "layer_wise", refuse)
    lossy = {"precision.bits": 8, "precision.scheme": "gate_threshold", "precision.low_bits": 4}
    engine.configure(EngineConfig().overlay({**BASE, **lossy}))
    assert len(score(engine, items())) == len(LENGTHS)
    engine.configure(EngineConfig().overlay(BASE))
    with pytest.raises(AssertionError, match="layer by layer"):
        score(engine, items())


def test_a_model_with_an_unknown_head_takes_the_ordinary_loop(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.configure(EngineConfig().overlay(BASE))
    expected = score(engine, items())
    monkeypatch.setattr(LayerWise, "_is_plain", lambda *arguments: False)
    with engine.layer_wise(16) as passing, pytest.raises(UnknownHeadError):
        passing.run([TextBatch(torch.tensor([[3, 4]]), (2,), (0,))], lambda *arguments: None)
    for own, other in zip(score(engine, items()), expected, strict=True):
        assert own.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-3)


def test_groups_keep_to_their_room() -> None:
    jobs = []
    for number, length in enumerate((40, 40, 33, 16, 16, 16, 3, 2, 1)):
        item = Continuation((1,) * length, (2,))
        jobs.append(scoring._Job(item.input, [(number, item)]))
    groups = list(scoring._batched_groups(jobs, batch_tokens=64, capacity=100))
    assert [job for group in groups for batch in group for job in batch] == jobs
    for group in groups:
        sizes = [scoring._text_batch(batch).tokens.numel() for batch in group]
        assert sum(sizes) <= 100
        assert max(sizes) <= 64


def test_hidden_states_take_what_the_budget_leaves() -> None:
    facts = make_facts()
    config = EngineConfig().overlay({"budget.vram_bytes": 500_000_000, "cache.expert_bytes": "10%"})
    _, few = layer_wise(config, facts, 100)
    _, many = layer_wise(config.overlay({"budget.vram_bytes": 600_000_000}), facts, 100)
    assert many > few > 0
    with pytest.raises(InfeasibleError):
        layer_wise(config, facts, 60_000)
