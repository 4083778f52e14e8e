"""A whole evaluation: figures, options, items, and going on where a killed one stopped."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from engine.config.settings import EngineConfig
from engine.contract.report import QualityReport
from engine.contract.requests import TaskOptions
from engine.errors import TaskError
from engine.evaluate import evaluate as evaluate_module
from engine.evaluate import scoring
from engine.evaluate.evaluate import evaluate
from engine.evaluate.journal import Journal, journal_path
from engine.evaluate.language_model import EngineLanguageModel
from engine.evaluate.tasks import load_tasks
from engine.precision.allocate import with_table
from engine.precision.table import bits_table
from engine.run.engine import Engine
from engine.run.layer_by_layer import LayerWise
from engine.trace.trace import load_trace, scored_trace_path
from tests.engine.conftest import TEXT
from tests.engine.evaluate.made import (
    CHOICE,
    GENERATE,
    QUESTIONS,
    ROLLING,
    choice_task,
    generation_task,
    rolling_task,
    write_task,
)

pytestmark = pytest.mark.filterwarnings("ignore")
BASE = {"kv.max_tokens": 200}
Run = Callable[..., QualityReport]


@pytest.fixture
def run(engine: Engine, tiny_folder: Path, tmp_path: Path) -> Run:
    """Evaluate tasks on the tiny model; options as TaskOptions has them."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)

    def invoke(*tasks: str, reference: bool = False, progress: Any = None, **options: Any) -> Any:
        return evaluate(
            engine,
            tokenizer,
            tasks,
            TaskOptions(**options),
            cache_folder=tmp_path,
            reference=reference,
            progress=progress,
        )

    return invoke


SAMPLED = {
    **GENERATE,
    "repeats": 4,
    "generation_kwargs": {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 2.0},
    "filter_list": [
        {"name": "vote", "filter": [{"function": "majority_vote"}, {"function": "take_first"}]},
        {"name": "first", "filter": [{"function": "take_first"}]},
    ],
}


def answers(
    engine: Engine, folder: Path, task: str, seed: int = 0, journal: Journal | None = None
) -> list[list[str]]:
    """What the model generated for each item, all repeats."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loaded = load_tasks([task], TaskOptions(limit=3))
    model = EngineLanguageModel(engine, tokenizer, journal=journal, seed=seed)
    requests = [one for one in loaded.tasks["t"].instances for _ in range(one.repeats)]
    texts = model.generate_until(requests)
    return [texts[start : start + 4] for start in range(0, len(texts), 4)]


def test_repeats_differ_from_each_other_and_are_the_same_on_a_rerun(
    engine: Engine, tiny_folder: Path, tmp_path: Path
) -> None:
    engine.configure(EngineConfig().overlay(BASE))
    task = write_task(tmp_path, "t", SAMPLED, QUESTIONS)
    found = answers(engine, tiny_folder, task)
    assert all(len(set(item)) == 4 for item in found)
    assert answers(engine, tiny_folder, task) == found
    assert answers(engine, tiny_folder, task, seed=1) != found
    journal = Journal(tmp_path / "j.jsonl")
    assert answers(engine, tiny_folder, task, journal=journal) == found
    assert answers(engine, tiny_folder, task, journal=Journal(tmp_path / "j.jsonl")) == found


def test_filters_over_repeats_give_a_result_each(run: Run, engine: Engine, tmp_path: Path) -> None:
    engine.configure(EngineConfig().overlay(BASE))
    report = run(write_task(tmp_path, "t", SAMPLED, QUESTIONS), limit=2)
    assert [one.metric for one in report.tasks] == ["exact_match,vote", "exact_match,first"]


def test_a_prompt_is_never_cut_for_its_answer(run: Run, engine: Engine, tmp_path: Path) -> None:
    # EleutherAI/lm-evaluation-harness#4001: what is left of the prompt is scored as if it were all
    engine.configure(EngineConfig().overlay(BASE))
    wide = {**GENERATE, "generation_kwargs": {"until": ["@"], "max_gen_toks": 190}}
    with pytest.raises(TaskError, match=r"t: a prompt of \d+ tokens and 190 new .* exceed the 200"):
        run(write_task(tmp_path, "t", wide, QUESTIONS))


def test_a_stop_string_that_is_a_special_token_ends_the_text(
    engine: Engine, tiny_folder: Path, tmp_path: Path
) -> None:
    engine.configure(EngineConfig().overlay(BASE))
    hot = {"max_gen_toks": 100, "do_sample": True, "temperature": 50.0}
    texts = {}
    for name, until in (("plain", []), ("stopped", ["<pad>"])):
        keys = {**SAMPLED, "generation_kwargs": {**hot, "until": until}, "repeats": 4}
        task = write_task(tmp_path, "t", keys, QUESTIONS)
        texts[name] = [one for item in answers(engine, tiny_folder, task) for one in item]
    pairs = list(zip(texts["plain"], texts["stopped"], strict=True))
    assert all(plain.startswith(stopped) for plain, stopped in pairs)
    assert any(len(stopped) < len(plain) for plain, stopped in pairs)


def test_an_evaluation_scores_what_an_edited_function_makes(
    run: Run, engine: Engine, tmp_path: Path
) -> None:
    engine.configure(EngineConfig().overlay(BASE))
    path = Path(write_task(tmp_path, "t", {**ROLLING, "doc_to_target": "{{question}}"}, QUESTIONS))
    with path.open("a") as file:
        file.write("process_docs: !function utils.docs\n")
    code = "def one(doc): return {'question': %r}\ndef docs(data): return data.map(one)\n"
    sizes = []
    for text in ("The engine", "The engine reads experts from the disk"):
        (tmp_path / "utils.py").write_text(code % text)
        sizes.append(run(str(path), limit=1).engine_tokens)
    assert sizes[1] > sizes[0]


def test_contexts_that_lose_their_beginning_are_counted(
    run: Run, engine: Engine, tmp_path: Path
) -> None:
    engine.configure(EngineConfig().overlay({"kv.max_tokens": 40}))
    long = [{**QUESTIONS[0], "question": TEXT}, QUESTIONS[1]]
    report = run(write_task(tmp_path, "t", CHOICE, long))
    assert report.cut_texts == len(QUESTIONS[0]["choices"])
    assert QualityReport.from_json(report.to_json()) == report


def test_a_group_reports_its_aggregate_beside_its_tasks(
    run: Run, engine: Engine, tmp_path: Path
) -> None:
    engine.configure(EngineConfig().overlay(BASE))
    write_task(tmp_path, "one", CHOICE, QUESTIONS)
    write_task(tmp_path, "two", CHOICE, QUESTIONS[:2])
    group = tmp_path / "g.yaml"
    text = (
        "group: g\ntask: [one, two]\naggregate_metric_list: [{metric: acc, weight_by_size: %s}]\n"
    )
    for weighted in (True, False):
        group.write_text(text % str(weighted).lower())
        report = run(str(group))
        acc = {one.task: one for one in report.tasks if one.metric == "acc"}
        weights = (8, 2) if weighted else (1, 1)
        expected = np.average([acc["one"].value, acc["two"].value], weights=weights)
        assert acc["g"].value == pytest.approx(float(expected))
        assert [acc[name].group for name in ("one", "two", "g")] == [False, False, True]


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every context that is scored."""
    seen: list[str] = []
    plain = EngineLanguageModel.loglikelihood

    def spy(self: EngineLanguageModel, requests: Any, disable_tqdm: bool = False) -> Any:
        seen.extend(request.args[0] for request in requests)
        return plain(self, requests, disable_tqdm)

    monkeypatch.setattr(EngineLanguageModel, "loglikelihood", spy)
    return seen


def test_quality_falls_with_bits(engine: Engine, tmp_path: Path, run: Run) -> None:
    reports: dict[int, Any] = {}
    task = rolling_task(tmp_path)
    for bits in (16, 4, 2):
        engine.configure(EngineConfig().overlay({"precision.bits": bits, **BASE}))
        reports[bits] = run(task, limit=4, reference=bits == 16)
    assert reports[16].tasks[0].n == 4
    assert reports[16].kld_mean == pytest.approx(0, abs=1e-6)
    assert reports[16].top1_agreement == 1
    assert 0 < reports[4].kld_mean < reports[2].kld_mean
    assert reports[16].prefill_kld_mean == pytest.approx(0, abs=1e-6)
    assert reports[16].prefill_top1_agreement == 1
    assert 0 < reports[4].prefill_kld_mean < reports[2].prefill_kld_mean
    assert 0 < reports[2].prefill_top1_agreement < 1
    assert reports[16].bits_per_byte != reports[2].bits_per_byte
    assert reports[16].engine_tokens > 0


def test_the_pass_that_scores_gives_the_divergence_and_the_routing_too(
    engine: Engine, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases: list[str] = []
    forward = Engine.forward

    def spy(self: Engine, batches: Any, phase: Any, consume: Any = None) -> Any:
        phases.append(phase)
        return forward(self, batches, phase, consume)

    monkeypatch.setattr(Engine, "forward", spy)
    task = rolling_task(tmp_path, ["Too short.", f"{TEXT} {TEXT}", TEXT, "An end."])
    engine.configure(EngineConfig().overlay(BASE))
    run(task, limit=4, reference=True)
    engine.configure(EngineConfig().overlay({"precision.bits": 4, **BASE}))
    report = run(task, limit=4)
    assert set(phases) == {"decode"}

    kept = next((tmp_path / "references").glob("*.prefill.npy"))
    monkeypatch.setattr(evaluate_module, "passes_layer_wise", lambda engine: False)  # no journal
    monkeypatch.setattr(evaluate_module._PrefillWatch, "open", lambda self, tokens: None)
    ordinary = run(task, limit=4)
    assert "prefill" in phases
    assert report.prefill_kld_mean == pytest.approx(ordinary.prefill_kld_mean, rel=0.05)
    assert np.load(kept, mmap_mode="r").shape[1] == engine.facts.vocabulary

    trace = load_trace(scored_trace_path(tmp_path, engine.facts.fingerprint))
    assert len(trace.passes) == 5  # windows of at most 200 tokens
    assert sum(item.tokens[0] for item in trace.passes) == len(trace.experts) > 0
    assert trace.experts.min() >= 0
    assert trace.experts.shape[1:] == (engine.facts.moe_layers, engine.facts.experts_per_token)
    popular = {"precision.scheme": "by_popularity", "precision.options.average_bits": 3}
    planned = with_table(EngineConfig().overlay(popular), engine.facts, tmp_path)
    table = bits_table(planned, engine.facts)
    assert table is not None
    busiest = np.bincount(trace.experts[:, 0].ravel()).argmax()
    assert table[0][busiest] == max(table[0])


def test_every_item_is_kept_and_the_figures_are_their_means(
    engine: Engine, tmp_path: Path, run: Run
) -> None:
    engine.configure(EngineConfig().overlay(BASE))
    report = run(choice_task(tmp_path), rolling_task(tmp_path), generation_task(tmp_path))
    items = {(one.task, one.metric): one for one in report.items}
    assert set(items) == {
        ("tiny_choice", "acc"),
        ("tiny_choice", "acc_norm"),
        ("tiny_bpb", "bits_per_byte"),
        ("tiny_generation", "exact_match"),
    }
    results = {(one.task, one.metric): one for one in report.tasks}
    for name, one in items.items():
        assert one.docs == tuple(range(results[name].n))
        if one.task != "tiny_bpb":
            mean = sum(one.values) / len(one.values)
            assert results[name].value == pytest.approx(mean)
    assert results["tiny_choice", "acc"].chance == pytest.approx(1 / 3)
    assert results["tiny_choice", "acc"].stderr is not None
    assert results["tiny_generation", "exact_match"].chance is None
    assert results["tiny_choice", "acc"].higher_is_better is True
    assert results["tiny_bpb", "bits_per_byte"].higher_is_better is False
    assert QualityReport.from_json(report.to_json()) == report


def test_examples_come_before_each_item_and_follow_the_seed(
    engine: Engine, tmp_path: Path, run: Run, prompts: list[str]
) -> None:
    engine.configure(EngineConfig().overlay(BASE))
    task = choice_task(tmp_path)
    runs = []
    for seed in (1, 1, 2):
        prompts.clear()
        run(task, num_fewshot=2, seed=seed)
        runs.append(list(prompts))
    assert all(len(prompt.split("\n\n")) == 3 for prompt in runs[0])
    assert runs[0] == runs[1] != runs[2]


def test_the_models_own_template_frames_each_turn(
    engine: Engine, tmp_path: Path, run: Run, prompts: list[str]
) -> None:
    engine.configure(EngineConfig().overlay(BASE))
    task = choice_task(tmp_path)
    run(task, apply_chat_template=True, num_fewshot=1, limit=1)
    several = prompts[0]
    prompts.clear()
    run(task, apply_chat_template=True, num_fewshot=1, limit=1, fewshot_as_multiturn=False)
    assert several.count("\n") == 3  # the tests' template ends each turn with one
    assert prompts[0] != several


def test_progress_counts_up_to_all_requests(engine: Engine, tmp_path: Path, run: Run) -> None:
    engine.configure(EngineConfig().overlay(BASE))
    received: list[tuple[int, int]] = []
    run(
        choice_task(tmp_path),
        rolling_task(tmp_path),
        progress=lambda _, done, total: received.append((done, total)),
    )
    assert received[-1] == (8 * 3 + 5, 8 * 3 + 5)
    assert [done for done, _ in received] == sorted(done for done, _ in received)


class Killed(BaseException):
    """As if the process had ended."""


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Texts of each pass through the layers; at most one text a pass."""
    counted: list[int] = []
    plain = LayerWise.run

    def spy(self: LayerWise, batches: Any, *arguments: Any, **named: Any) -> None:
        counted.append(sum(len(batch.lengths) for batch in batches))
        plain(self, batches, *arguments, **named)

    monkeypatch.setattr(LayerWise, "run", spy)
    monkeypatch.setattr(scoring, "_batched_groups", lambda jobs, *_: ([[job]] for job in jobs))
    return counted


@pytest.fixture
def killed_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the journal take this many groups, then die."""

    def arrange(groups: int) -> None:
        plain = Journal.add
        left = groups

        def add(self: Journal, results: Any) -> None:
            nonlocal left
            if not left:
                monkeypatch.setattr(Journal, "add", plain)
                raise Killed
            left -= 1
            plain(self, results)

        monkeypatch.setattr(Journal, "add", add)

    return arrange


def test_a_killed_evaluation_goes_on_where_it_stopped(
    engine: Engine,
    tmp_path: Path,
    run: Run,
    passes: list[int],
    killed_after: Callable[[int], None],
) -> None:
    engine.configure(EngineConfig().overlay(BASE))
    tasks = choice_task(tmp_path), rolling_task(tmp_path), generation_task(tmp_path)
    whole = run(*tasks)
    count = len(passes)
    assert engine.config is not None
    path = journal_path(engine.facts, engine.config, tmp_path)
    path.unlink()
    passes.clear()
    killed_after(7)
    with pytest.raises(Killed):
        run(*tasks)
    assert len(passes) == 8
    with path.open("ab") as file:
        file.write(b'{"torn": [1.')
    passes.clear()
    received: list[int] = []
    resumed = run(*tasks, progress=lambda _, done, total: received.append(done))
    assert len(passes) == count - 7
    assert resumed.tasks == whole.tasks
    assert resumed.items == whole.items
    assert 7 <= received[0] < received[-1] == 8 * 3 + 5 + 8
    assert resumed.engine_tokens < whole.engine_tokens
    passes.clear()
    again = run(*tasks)
    assert (len(passes), again.engine_tokens, again.items) == (0, 0, whole.items)


def test_what_can_change_scores_has_a_journal_of_its_own(engine: Engine, tmp_path: Path) -> None:
    def path(**settings: Any) -> Path:
        named = {name.replace("__", "."): value for name, value in settings.items()}
        return journal_path(engine.facts, EngineConfig().overlay({**BASE, **named}), tmp_path)

    others = [
        path(precision__bits=4),
        path(compute__dtype="float32"),
        path(precision__non_expert_bits=8),
        journal_path(replace(engine.facts, fingerprint="other"), EngineConfig(), tmp_path),
    ]
    assert len({path(), *others}) == 5
    assert path(cache__expert_bytes="50%", cache__eviction="lfu", prefetch__depth=1) == path()


def test_nothing_is_kept_where_outputs_depend_on_what_is_resident(
    engine: Engine, tmp_path: Path, run: Run
) -> None:
    on_miss = {"precision.scheme": "popularity_mass", "precision.bits": 8, "precision.low_bits": 4}
    engine.configure(EngineConfig().overlay({**BASE, **on_miss}))
    report = run(rolling_task(tmp_path), limit=1)
    assert report.bits_per_byte is not None
    assert math.isfinite(report.bits_per_byte)
    assert not (tmp_path / "evaluations").exists()


@pytest.mark.parametrize("tail", [b"", b"{", b'{"c": 1}', b"[1]\n", b"\xff\n"])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).add({"a": [1.5, True]})
    with path.open("ab") as file:
        file.write(tail)
    journal = Journal(path)
    assert (journal.get("a"), len(journal)) == ([1.5, True], 1)
    journal.add({"b": "text"})
    assert (Journal(path).get("a"), Journal(path).get("b")) == ([1.5, True], "text")


def test_a_tokenizers_own_special_tokens_are_kept_as_in_lm_eval(
    engine: Engine, tiny_folder: Path
) -> None:
    engine.configure(EngineConfig().overlay(BASE))
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    plain = EngineLanguageModel(engine, tokenizer).tok_encode("The")

    class Beginning:
        """Adds BOS to what it reads, as the tokenizers of Llama and Gemma do."""

        bos_token_id, eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        decode = tokenizer.decode

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            return {"input_ids": [self.bos_token_id] * add_special_tokens + ids}

    model = EngineLanguageModel(engine, Beginning())
    assert model.tok_encode("The") == [tokenizer.bos_token_id, *plain]
    assert model.tok_encode("<s>The") == [tokenizer.bos_token_id, *plain]
    assert model.tok_encode("The", add_special_tokens=False) == plain


def test_seeds_are_set_before_anything_is_drawn(engine: Engine, tmp_path: Path, run: Run) -> None:
    engine.configure(EngineConfig().overlay(BASE))
    drawn = []
    for _ in range(2):
        run(rolling_task(tmp_path), limit=1, seed=5)
        drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[1]
