"""A measurement's figures: the parts of a token's time sum up, counters agree, intervals hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from engine.config.settings import EngineConfig
from engine.contract.report import Report
from engine.contract.requests import Workload
from engine.contract.statistics import mean_metric
from engine.errors import EngineError, UsageError
from engine.measure.energy import EnergyMeter
from engine.measure.measure import measure
from engine.measure.pass_through import Sequenced
from engine.measure.statistics import percentile_metric
from engine.measure.workload import pick, tokenize
from engine.run.engine import Engine
from engine.run.time_split import PhaseClock
from tests.engine.conftest import TEXT

WORKLOAD = Workload(
    "tiny",
    prompts=tuple(TEXT[: 60 + start] for start in range(0, 60, 6)),
    continuations=(TEXT,) * 10,
    prompt_tokens=12,
    output_tokens=6,
    sequences=3,
)


def run(
    engine: Engine, folder: Path, meter: EnergyMeter | None = None, **settings: object
) -> Report:
    engine.configure(EngineConfig().overlay({"kv.max_tokens": 64, **settings}))
    return measure(
        engine,
        tokenize(WORKLOAD, AutoTokenizer.from_pretrained(folder)),
        output_tokens=WORKLOAD.output_tokens,
        sequences_per_repeat=WORKLOAD.sequences,
        repeats=2,
        first_repeat=0,
        warm_up=True,
        runtime_bytes=0,
        meter=meter,
    )


@pytest.mark.alone
@pytest.mark.parametrize("count", [1, 3])
def test_the_parts_of_a_tokens_time_sum_to_its_wall_time(
    engine: Engine, tiny_folder: Path, count: int
) -> None:
    report = run(engine, tiny_folder, **{"batch.count": count, "cache.expert_bytes": "50%"})
    parts = sum(m.value for n, m in report.metrics.items() if n.startswith("time_ms_per_token."))
    wall = report.metrics["wall_ms_per_token"].value
    assert parts == pytest.approx(wall, rel=0.02)
    assert report.metrics["output_tps"].value > 0
    assert {s.repeat for s in report.samples} == {0, 1}


def test_without_a_cache_every_look_up_misses_and_with_capacity_for_all_none_does(
    engine: Engine, tiny_folder: Path
) -> None:
    cold = run(engine, tiny_folder, **{"cache.eviction": "none"})
    warm = run(engine, tiny_folder, **{"cache.expert_bytes": "100%"})
    assert cold.metrics["expert_hit_rate"].value == 0
    assert cold.metrics["disk_bytes_per_token"].value > 0
    assert warm.metrics["expert_hit_rate"].value == 1
    assert warm.metrics["disk_bytes_per_token"].value == 0
    assert warm.metrics["resident_fraction"].value == 1


def test_predictions_are_counted(engine: Engine, tiny_folder: Path) -> None:
    settings = {"prefetch.predictor": "next_gate", "prefetch.depth": 1, "cache.expert_bytes": "50%"}
    report = run(engine, tiny_folder, **settings)
    for name in ("prefetch_precision", "prefetch_recall"):
        assert 0 < report.metrics[name].value <= 1


def test_a_report_survives_json(engine: Engine, tiny_folder: Path) -> None:
    report = run(engine, tiny_folder)
    assert Report.from_json(report.to_json()) == report


def test_repeats_take_other_texts_in_turn(tiny_folder: Path) -> None:
    sequences = tokenize(WORKLOAD, AutoTokenizer.from_pretrained(tiny_folder))
    assert pick(sequences, 3, 0) != pick(sequences, 3, 1)
    assert pick(sequences, 3, 1) == pick(sequences, 3, 1)
    with pytest.raises(UsageError, match="has no prompts"):
        tokenize(Workload("none", prompts=()), AutoTokenizer.from_pretrained(tiny_folder))


def test_an_interval_is_students() -> None:
    metric = mean_metric([10.0, 12.0, 14.0], "ms", signed=True)
    assert metric.value == 12
    assert metric.high - 12 == pytest.approx(4.303 * 2 / 3**0.5, rel=1e-4)
    assert mean_metric([5.0], "ms").low == 5


def test_a_percentile_of_few_events_is_marked_an_estimate() -> None:
    values = [float(number) for number in range(1, 101)]
    assert percentile_metric(values, 50, "ms").value == 50
    assert not percentile_metric(values, 90, "ms").estimate
    assert percentile_metric(values, 99, "ms").estimate


def test_the_phase_clock_charges_every_moment_once() -> None:
    times = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0])
    clock = PhaseClock(lambda: next(times))
    clock.switch("non_expert")
    assert clock.switch("router") == "non_expert"
    clock.switch("non_expert")
    clock.switch("other")
    assert clock.seconds["other"] == 1
    assert clock.seconds["non_expert"] == 2 + 4
    assert clock.seconds["router"] == 3


class SteppingMeter:
    """Moves by the same joules at each reading."""

    source = "a test"

    def __init__(self, step_j: float) -> None:
        self._step_j = step_j
        self._total_j = 0.0

    def joules(self) -> float:
        self._total_j += self._step_j
        return self._total_j


def test_energy_is_shared_among_the_tokens_of_all_sequences(
    engine: Engine, tiny_folder: Path
) -> None:
    report = run(engine, tiny_folder, SteppingMeter(36.0), **{"batch.count": 3})
    tokens = WORKLOAD.sequences * WORKLOAD.output_tokens
    assert report.metrics["energy_j_per_token"].value == pytest.approx(36.0 / tokens)
    assert report.environment["energy_source"] == "a test"


@pytest.mark.parametrize("meter", [None, SteppingMeter(0.0)])
def test_a_counter_that_is_not_there_or_stands_still_gives_no_figure(
    engine: Engine, tiny_folder: Path, meter: EnergyMeter | None
) -> None:
    assert "energy_j_per_token" not in run(engine, tiny_folder, meter).metrics


POISON = 299
CLEAN = Sequenced((5, 6, 7, 8), (9, 10, 11, 12))
BAD = {
    "in the prompt": Sequenced((5, POISON, 7, 8), (9, 10, 11, 12)),
    "in the forced text": Sequenced((5, 6, 7, 8), (9, POISON, 11, 12)),
    "before sampling": Sequenced((5, POISON, 7, 8), ()),
}


def run_poisoned(engine: Engine, sequences: list[Sequenced]) -> Report:
    """One token's embedding is NaN, as an overflow of float16 would be."""
    engine.configure(EngineConfig().overlay({"kv.max_tokens": 64}))
    with torch.no_grad():
        engine.model.model.get_input_embeddings().weight[POISON] = float("nan")
    return measure(
        engine,
        sequences,
        output_tokens=4,
        sequences_per_repeat=len(sequences),
        repeats=2,
        first_repeat=0,
        warm_up=False,
        runtime_bytes=0,
    )


@pytest.mark.parametrize("where", BAD)
def test_sequences_that_become_nan_are_errors_and_nothing_else(engine: Engine, where: str) -> None:
    report = run_poisoned(engine, [CLEAN, BAD[where], CLEAN, CLEAN])
    assert report.metrics["error_rate"].value == 0.25
    assert report.metrics["ttft_ms.p50"].n == 6
    finished = report.metrics["request_rps"].value
    assert report.metrics["output_tps"].value == pytest.approx(4 * finished)
    assert all(metric.value == metric.value for metric in report.metrics.values())


def test_no_sequence_fails_where_all_logits_are_numbers(engine: Engine) -> None:
    assert run_poisoned(engine, [CLEAN]).metrics["error_rate"].value == 0


def test_a_measurement_where_every_sequence_fails_raises(engine: Engine) -> None:
    with pytest.raises(EngineError, match=r"every sequence failed: .* try compute.dtype"):
        run_poisoned(engine, [BAD["in the prompt"]])


def test_what_each_layers_experts_were_asked_agrees_with_the_hit_rate(
    engine: Engine, tiny_folder: Path
) -> None:
    report = run(
        engine,
        tiny_folder,
        **{"cache.expert_bytes": "50%", "prefetch.predictor": "next_gate", "prefetch.depth": 1},
    )
    use, facts = report.experts, engine.facts
    assert use is not None
    tokens = 2 * WORKLOAD.sequences * (WORKLOAD.prompt_tokens + WORKLOAD.output_tokens - 1)
    for row in use.activations:
        assert len(row) == facts.experts
        assert sum(row) == tokens * facts.experts_per_token
    decoded = 2 * WORKLOAD.sequences * (WORKLOAD.output_tokens - 1)
    looked_up = [hits + misses for hits, misses in zip(use.hits, use.misses, strict=True)]
    assert looked_up == [decoded * facts.experts_per_token] * facts.moe_layers
    rate = sum(use.hits) / sum(looked_up)
    assert rate == pytest.approx(report.metrics["expert_hit_rate"].value)
    assert use.predicted[0] == 0
    precision = sum(use.predicted_demanded) / sum(use.predicted)
    assert precision == pytest.approx(report.metrics["prefetch_precision"].value, rel=0.2)
    assert Report.from_json(report.to_json()).experts == use
