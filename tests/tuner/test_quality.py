"""The quality key: what must share an evaluation, and what must not."""

from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.report import QualityReport, TaskResult
from tuner.definition import QualityTasks
from tuner.errors import StudyError
from tuner.quality import quality_dependencies, quality_key, quality_ratio, task_digest

TASKS = QualityTasks(tasks=["t"], limit=5)


def key(seed: int = 0, tasks: QualityTasks = TASKS, **values: object) -> str:
    settings = {name.replace("__", "."): value for name, value in values.items()}
    config = EngineConfig().overlay({"precision.bits": 4, **settings})
    return quality_key(quality_dependencies(config, tasks, seed))


@pytest.mark.parametrize(
    "setting",
    [
        {"cache__expert_bytes": "25%"},
        {"cache__eviction": "none"},
        {"prefetch__depth": 2},
        {"batch__count": 4},
        {"budget__vram_bytes": 9},
        {"io__threads": 4},
    ],
)
def test_what_cannot_change_outputs_shares_a_key(setting: dict[str, object]):
    assert key(**setting) == key()


@pytest.mark.parametrize(
    "setting",
    [
        {"precision__bits": 8},
        {"precision__group_size": 32},
        {"compute__dtype": "float32"},
        {"kernel__name": "dequantize"},
        {"seed": 1},
        {"tasks": QualityTasks(tasks=["t"], limit=6)},
        {"tasks": QualityTasks(tasks=["u"], limit=5)},
    ],
)
def test_what_can_change_outputs_has_its_own_key(setting: dict[str, object]):
    assert key(**setting) != key()


def test_a_group_size_means_nothing_at_16_bits():
    assert key(precision__bits=16, precision__group_size=32) == key(precision__bits=16)


def test_a_task_file_counts_by_content_and_by_the_files_it_names(tmp_path: Path):
    task = tmp_path / "t.yaml"
    task.write_text("task: t\ndataset_kwargs: {data_files: data.jsonl}\n")
    (tmp_path / "data.jsonl").write_text("one")
    before = task_digest(str(task))
    assert task_digest(str(task)) == before
    (tmp_path / "data.jsonl").write_text("two")
    assert task_digest(str(task)) != before


def report(bits_per_byte: float | None, accuracy: float = 0.5) -> QualityReport:
    tasks = (TaskResult("t", "acc", accuracy, 0.1, 10),)
    return QualityReport(tasks, bits_per_byte, None, None, 0.0, 0)


def test_quality_is_the_references_bits_per_byte_over_the_configs():
    assert quality_ratio(report(1.5), report(2.0)) == 0.75


def test_without_bits_per_byte_the_task_metrics_compare():
    assert quality_ratio(report(None, 0.8), report(None, 0.4)) == 0.5


def test_tasks_that_say_nothing_are_refused():
    with pytest.raises(StudyError, match="name other --tasks"):
        quality_ratio(report(None, 0.0), report(None, 0.0))


def test_a_stored_report_without_prefill_figures_is_read():
    kept = report(1.5).to_json()
    del kept["prefill_kld_mean"], kept["prefill_top1_agreement"]
    assert QualityReport.from_json(kept) == report(1.5)
