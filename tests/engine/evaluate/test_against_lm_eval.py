"""Scores through the engine equal lm-eval's own model on plain transformers, item by item."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.evaluator import evaluate as run_lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.config.settings import EngineConfig
from engine.contract.requests import TaskOptions
from engine.evaluate.evaluate import evaluate
from engine.evaluate.language_model import EngineLanguageModel
from engine.evaluate.tasks import load_tasks
from engine.run.engine import Engine
from tests.engine.conftest import TEXT
from tests.engine.evaluate.made import (
    CHOICE,
    GENERATE,
    QUESTIONS,
    choice_task,
    generation_task,
    rolling_task,
    write_task,
)

pytestmark = pytest.mark.filterwarnings("ignore")
LENGTH = 96
BASE = {"compute.dtype": "float32", "cache.expert_bytes": "40%", "kv.max_tokens": LENGTH}
LONG = (TEXT, TEXT * 4)  # the second is read in windows


def responses(model: Any, tasks: list[str], options: TaskOptions) -> dict[str, list[Any]]:
    """What the model answered to each request, by task."""
    template = model.apply_chat_template if options.apply_chat_template else None
    loaded = load_tasks(tasks, options, template)
    outcome = run_lm_eval(
        model,
        {"tasks": loaded.tasks, "groups": loaded.groups},
        limit=options.limit,
        bootstrap_iters=0,
        apply_chat_template=options.apply_chat_template,
        fewshot_as_multiturn=options.fewshot_as_multiturn,
    )
    return {
        name: [reply for sample in samples for replies in sample["resps"] for reply in replies]
        for name, samples in outcome["samples"].items()
    }


def with_bos(folder: Path, copy: Path) -> Path:
    """The tiny model with a tokenizer that begins every text with BOS, as Llama's does."""
    shutil.copytree(folder, copy)
    tokenizer = AutoTokenizer.from_pretrained(copy)
    bos = tokenizer.bos_token_id
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos)]
    )
    tokenizer.save_pretrained(copy)
    return copy


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        TaskOptions(),
        TaskOptions(num_fewshot=1, seed=3),
        TaskOptions(num_fewshot=1, apply_chat_template=True),
    ],
)
def test_every_answer_equals_lm_evals_own(
    engine: Engine, tiny_folder: Path, tmp_path: Path, options: TaskOptions, begins: bool
) -> None:
    engine.configure(EngineConfig().overlay(BASE))
    source = with_bos(tiny_folder, tmp_path / "bos") if begins else tiny_folder
    tokenizer = AutoTokenizer.from_pretrained(source)
    assert (tokenizer("The")["input_ids"][0] == tokenizer.bos_token_id) is begins
    tasks = [choice_task(tmp_path), rolling_task(tmp_path, LONG), generation_task(tmp_path)]
    plain = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32),
        tokenizer=tokenizer,
        max_length=LENGTH,
        batch_size=4,
        device="cpu",
    )
    expected = responses(plain, tasks, options)
    found = responses(EngineLanguageModel(engine, tokenizer), tasks, options)
    for own, other in zip(found["tiny_choice"], expected["tiny_choice"], strict=True):
        assert own[0] == pytest.approx(other[0], abs=1e-3)
        assert own[1] == other[1]
    for own, other in zip(found["tiny_bpb"], expected["tiny_bpb"], strict=True):
        assert own == pytest.approx(other, abs=1e-3)
    assert found["tiny_generation"] == expected["tiny_generation"]


CODE = """
def docs(data): return data.map(lambda doc: {"question": doc["question"].upper()})
def results(doc, answers): return {"length": float(len(answers[0]))}
"""
LENGTH_METRIC = {"metric": "length", "aggregation": "mean", "higher_is_better": True}


def family(folder: Path) -> Path:
    """A group of three tasks with all that the guide has: includes, functions, few shots, tags."""
    (folder / "utils.py").write_text(CODE)
    shots = {"num_fewshot": 2, "fewshot_split": "test", "fewshot_config": {"sampler": "first_n"}}
    write_task(folder, "base", {**CHOICE, **shots, "description": "Choose.\n"}, QUESTIONS)
    own = "include: base.yaml\ntag: pair\nprocess_docs: !function utils.docs\n"
    (folder / "first.yaml").write_text(own + "task: first\n")
    (folder / "second.yaml").write_text(own + "task: second\ngen_prefix: 'So:'\nnum_fewshot: 0\n")
    written = write_task(folder, "third", {**GENERATE, "metric_list": [LENGTH_METRIC]}, QUESTIONS)
    with Path(written).open("a") as file:
        file.write("process_results: !function utils.results\n")
    group = folder / "family.yaml"
    group.write_text(
        "group: family\ntask: [pair, {group: inner, task: [third]}]\n"
        "aggregate_metric_list: [{metric: acc}, {metric: acc_norm, weight_by_size: false}]\n"
    )
    return group


@pytest.mark.parametrize("template", [False, True])
def test_a_family_of_task_files_scores_as_in_lm_eval_itself(
    engine: Engine,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    template: bool,
) -> None:
    """lm-eval reads the files by itself, from their folder, where it expects to find their data."""
    engine.configure(EngineConfig().overlay({**BASE, "kv.max_tokens": 400}))
    files = tmp_path / "files"
    files.mkdir()
    group = family(files)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    plain = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32),
        tokenizer=tokenizer,
        max_length=400,
        device="cpu",
    )
    monkeypatch.chdir(files)
    theirs = TaskManager(include_path=files, include_defaults=False).load(["family"])
    for task in theirs["tasks"].values():
        task.set_fewshot_seed(seed=0)
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    expected = run_lm_eval(
        plain, theirs, apply_chat_template=template, fewshot_as_multiturn=template
    )["results"]
    monkeypatch.chdir(tmp_path)
    report = evaluate(
        engine,
        tokenizer,
        [str(group)],
        TaskOptions(apply_chat_template=template, fewshot_as_multiturn=template),
        cache_folder=tmp_path,
        reference=False,
    )
    found = {(one.task, one.metric): one for one in report.tasks}
    assert {task for task, _ in found} == {"first", "second", "third", "family"}
    for (task, metric), one in found.items():
        assert one.value == pytest.approx(expected[task][f"{metric},none"]), (task, metric)
        assert one.group is (task == "family")
