"""Scores through the engine equal lm-eval's own model on plain transformers, item by item."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.evaluator import evaluate as run_lm_eval
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.config.settings import EngineConfig
from engine.contract.requests import TaskOptions
from engine.evaluate.language_model import EngineLanguageModel
from engine.evaluate.tasks import load_tasks
from engine.run.engine import Engine
from tests.engine.conftest import TEXT
from tests.engine.evaluate.made import choice_task, generation_task, rolling_task

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
