"""The quality key: what must share an evaluation, and what must not. What figures compare."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine.config.settings import EngineConfig
from engine.contract.report import QualityReport, TaskItems, TaskResult
from engine.contract.requests import Workload
from engine.facts.machine import probe
from tests.fakes.in_process import InProcessWorker
from tuner.definition.study import QualityTasks, StudyDefinition
from tuner.engine_client.session import EngineSession
from tuner.errors import QualityError
from tuner.quality.judge import QualityJudge
from tuner.quality.key import quality_dependencies, quality_key, task_digest
from tuner.quality.paired import paired_results
from tuner.quality.ratio import quality_ratio
from tuner.store.database import open_database
from tuner.store.repository import Store

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
        {"precision__non_expert_bits": 8},
        {"kv__max_tokens": 100},
        {"kv__keep_fraction": 0.5},
        {"seed": 1},
        {"tasks": QualityTasks(tasks=["t"], limit=6)},
        {"tasks": QualityTasks(tasks=["t"], limit=5, num_fewshot=3)},
        {"tasks": QualityTasks(tasks=["t"], limit=5, apply_chat_template=True)},
        {"tasks": QualityTasks(tasks=["u"], limit=5)},
    ],
)
def test_what_can_change_outputs_has_its_own_key(setting: dict[str, object]):
    assert key(**setting) != key()


def test_turns_mean_nothing_without_a_template():
    alone = {"tasks": ["t"], "limit": 5, "fewshot_as_multiturn": False}
    assert key(tasks=QualityTasks(**alone)) == key()
    framed = key(tasks=QualityTasks(**alone, apply_chat_template=True))
    assert framed != key(tasks=QualityTasks(tasks=["t"], limit=5, apply_chat_template=True))


@pytest.fixture
def judge(tmp_path: Path) -> Iterator[QualityJudge]:
    """A judge over the fake engine, which counts its operations in counts.json."""

    def start() -> InProcessWorker:
        knobs = json.dumps({"counter": str(tmp_path / "counts.json")})
        return InProcessWorker(environment={"EXPERTUNE_FAKE": knobs})

    store = Store(open_database(f"sqlite:///{tmp_path / 'e.db'}"))
    with EngineSession("m", start_worker=start) as session:
        study = store.begin_study(
            StudyDefinition(model="m"), session.facts, probe(tmp_path), Workload("w", ("a",))
        )
        yield QualityJudge(session, store, study.model_id, TASKS, 0, EngineConfig())
    store.database.close()


@pytest.mark.parametrize("lossy", [{"kv.bits": 4}, {"kv.keep_fraction": 0.5}])
def test_a_reference_keeps_keys_and_values_whole_where_the_study_does_not(
    judge: QualityJudge, tmp_path: Path, lossy: dict
):
    whole = judge.reference()
    fixed = replace(judge, base=EngineConfig().overlay(lossy))
    assert fixed.reference() == whole
    assert json.loads((tmp_path / "counts.json").read_text())["evaluate"] == 1


FOUR = {"precision.bits": 4, "cache.expert_bytes": "25%"}
ON_MISS = {**FOUR, "precision.scheme": "popularity_mass", "precision.low_bits": 2}


@pytest.mark.parametrize(
    ("base", "change", "again"),
    [
        (FOUR, {}, False),
        (FOUR, {"cache.expert_bytes": "50%"}, False),
        (FOUR, {"cache.eviction": "lfu"}, False),
        (FOUR, {"prefetch.predictor": "next_gate", "prefetch.depth": 1}, False),
        (FOUR, {"batch.count": 2}, False),
        (ON_MISS, {}, False),
        (ON_MISS, {"io.threads": 3}, False),
        (ON_MISS, {"cache.expert_bytes": "50%"}, True),
        (ON_MISS, {"cache.eviction": "lfu"}, True),
        (ON_MISS, {"prefetch.predictor": "next_gate", "prefetch.depth": 1}, True),
        (ON_MISS, {"batch.count": 2}, True),
        (FOUR, {"kv.max_tokens": 300}, True),
        (FOUR, {"precision.non_expert_bits": 8}, True),
        (FOUR, {"compute.dtype": "float32"}, True),
        (FOUR, {"precision.bits": 8}, True),
    ],
)
def test_the_engine_works_again_only_for_what_can_change_outputs(
    judge: QualityJudge, tmp_path: Path, base: dict, change: dict, again: bool
):
    def evaluations() -> int:
        return json.loads((tmp_path / "counts.json").read_text())["evaluate"]

    first = judge.judge(EngineConfig().overlay(base))
    assert evaluations() == 1
    second = judge.judge(EngineConfig().overlay({**base, **change}))
    assert evaluations() == 1 + again
    assert (second.id == first.id) is not again


def test_what_was_stored_needs_no_journal_any_more(judge: QualityJudge, tmp_path: Path):
    judge.judge(EngineConfig().overlay(FOUR))
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert (counts["evaluate"], counts["discard_journal"]) == (1, 1)


def test_items_are_kept_beside_the_result(judge: QualityJudge):
    result = judge.judge(EngineConfig().overlay(FOUR))
    assert result.report.items == ()
    assert judge.store.quality(judge.model_id, result.key) == result
    (items,) = judge.store.with_items([result.id])[result.id].items
    assert (items.task, items.metric, items.docs) == ("t", "bits_per_byte", (0, 1, 2, 3, 4))
    assert items.values == pytest.approx((1.54, 1.55, 1.56, 1.57, 1.58))


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


@pytest.mark.parametrize(
    "changed",
    ["t.yaml", "base.yaml", "utils.py", "helper.py", "data.jsonl", "more/b.jsonl", "words.txt"],
)
def test_whatever_a_task_file_consists_of_is_in_its_key(tmp_path: Path, changed: str):
    # lm-eval reads all of these again, so that a score of before would be another task's
    (tmp_path / "more").mkdir()
    texts = {
        "t.yaml": "include: base.yaml\ntask: t\nprocess_docs: !function utils.f\n"
        "metadata: {words: words.txt}\n",
        "base.yaml": "dataset_kwargs: {data_files: {test: data.jsonl, train: [more/*.jsonl]}}\n",
        "utils.py": "import helper\n",
    }
    for name in ("helper.py", "data.jsonl", "more/a.jsonl", "more/b.jsonl", "words.txt"):
        texts[name] = "1\n"
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    before = task_digest(str(tmp_path / "t.yaml"))
    (tmp_path / changed).write_text(texts[changed] + "changed: 1\n")
    assert task_digest(str(tmp_path / "t.yaml")) != before


def test_a_groups_members_are_in_its_key(tmp_path: Path):
    (tmp_path / "g.yaml").write_text("group: g\ntask: [pair, {group: h, task: [two]}]\n")
    (tmp_path / "one.yaml").write_text("task: one\ntag: pair\n")
    (tmp_path / "two.yaml").write_text("task: two\nprocess_docs: !function u.f\n")
    (tmp_path / "u.py").write_text("")
    (tmp_path / "other.yaml").write_text("task: other\n")

    def digests() -> str:
        return task_digest(str(tmp_path / "g.yaml"))

    seen = [digests()]
    for name, text in (("u.py", "1"), ("one.yaml", "task: one\ntag: [pair]\nrepeats: 2\n")):
        (tmp_path / name).write_text(text)
        seen.append(digests())
    assert len(set(seen)) == 3
    (tmp_path / "other.yaml").write_text("task: other\nrepeats: 2\n")
    assert digests() == seen[-1]


def test_moving_a_task_with_its_files_keeps_its_key(tmp_path: Path):
    digests = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t.yaml").write_text(
            "task: t\nprocess_docs: !function u.f\ndataset_kwargs: {data_files: d.jsonl}\n"
        )
        (tmp_path / name / "u.py").write_text("1")
        (tmp_path / name / "d.jsonl").write_text("2")
        digests.add(task_digest(str(tmp_path / name / "t.yaml")))
    assert len(digests) == 1


def report(bits_per_byte: float | None, accuracy: float = 0.5) -> QualityReport:
    tasks = (TaskResult("t", "acc", accuracy, 0.1, 10),)
    return QualityReport(tasks, bits_per_byte, None, None, 0.0, 0)


def test_a_groups_tasks_count_once_and_its_aggregate_does_not():
    def scored(one: float, two: float, group: float) -> QualityReport:
        rows = (("one", one, False), ("two", two, False), ("both", group, True))
        tasks = (TaskResult(name, "acc", value, 0.01, 10, group=g) for name, value, g in rows)
        return QualityReport(tuple(tasks), None, None, None, 0.0, 0)

    assert quality_ratio(scored(0.5, 0.5, 0.9), scored(0.5, 0.25, 0.0)) == pytest.approx(0.75)


def test_quality_is_the_references_bits_per_byte_over_the_configs():
    assert quality_ratio(report(1.5), report(2.0)) == 0.75


def test_without_bits_per_byte_the_task_metrics_compare():
    assert quality_ratio(report(None, 0.8), report(None, 0.4)) == 0.5


def test_tasks_that_say_nothing_are_refused():
    with pytest.raises(QualityError, match="name other --tasks") as caught:
        quality_ratio(report(None, 0.0), report(None, 0.0))
    assert caught.value.failure == "task"


def choice(accuracy: float, stderr: float = 0.02, metric: str = "acc") -> TaskResult:
    better = metric == "acc"
    return TaskResult("c", metric, accuracy, stderr, 100, 0.25 if better else None, better)


def of(*results: TaskResult, items: tuple[TaskItems, ...] = ()) -> QualityReport:
    return QualityReport(results, None, None, None, 0.0, 0, items=items)


def test_accuracy_compares_above_chance():
    assert quality_ratio(of(choice(0.75)), of(choice(0.5))) == pytest.approx(0.5)
    assert quality_ratio(of(choice(0.75)), of(choice(0.2))) == 0.0


def test_what_16_bits_guess_and_what_should_be_small_do_not_count():
    told = of(choice(0.75), TaskResult("g", "acc", 0.28, 0.02, 100, 0.25, True), choice(9, 0, "p"))
    other = of(choice(0.5), TaskResult("g", "acc", 0.9, 0.02, 100, 0.25, True), choice(99, 0, "p"))
    assert quality_ratio(told, other) == pytest.approx(0.5)
    with pytest.raises(QualityError, match="no metric above chance"):
        quality_ratio(of(choice(0.27)), of(choice(0.27)))


def test_items_are_paired_by_number_and_corrected_for_chance():
    reference = of(items=(TaskItems("c", "acc", (0, 1, 2, 3), (1.0, 1.0, 0.0, 1.0)),))
    own = of(choice(0.5), items=(TaskItems("c", "acc", (3, 2, 1, 9), (0.0, 0.0, 1.0, 1.0)),))
    (found,) = paired_results(reference, own)
    assert found.difference.n == 3
    assert found.difference.value == pytest.approx(-1 / 3 / 0.75)
    assert found.difference.low < found.difference.value < found.difference.high
    assert found.value == pytest.approx((1 / 3 - 0.25) / 0.75)
    assert found.reference == pytest.approx((2 / 3 - 0.25) / 0.75)


def test_the_same_answers_differ_by_nothing():
    items = (TaskItems("c", "acc", (0, 1), (1.0, 0.0)),)
    (found,) = paired_results(of(items=items), of(choice(0.5), items=items))
    assert (found.difference.low, found.difference.high) == (0.0, 0.0)


def test_a_stored_report_without_prefill_figures_is_read():
    kept = report(1.5).to_json()
    del kept["prefill_kld_mean"], kept["prefill_top1_agreement"], kept["items"]
    for task in kept["tasks"]:
        del task["chance"], task["higher_is_better"]
    assert QualityReport.from_json(kept) == report(1.5)
