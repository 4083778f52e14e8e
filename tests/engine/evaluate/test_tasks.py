"""What cannot be evaluated: each says in one sentence what was wrong and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from engine.config.settings import EngineConfig
from engine.contract.requests import TaskOptions
from engine.errors import EvaluationError, TaskError
from engine.evaluate.evaluate import evaluate
from engine.evaluate.tasks import load_tasks
from engine.run.engine import Engine
from tests.engine.evaluate.made import (
    CHOICE,
    QUESTIONS,
    ROLLING,
    choice_task,
    generation_task,
    rolling_task,
    write_task,
)

pytestmark = pytest.mark.filterwarnings("ignore")
Run = Callable[..., Any]


@pytest.fixture
def tokenizer(tiny_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture
def run(engine: Engine, tokenizer: Any, tmp_path: Path) -> Run:
    """Evaluate one task on the tiny model."""
    engine.configure(EngineConfig().overlay({"kv.max_tokens": 200}))

    def invoke(task: str, **options: Any) -> Any:
        given = TaskOptions(**options)
        return evaluate(engine, tokenizer, [task], given, cache_folder=tmp_path, reference=False)

    return invoke


def test_a_task_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="knows no task 'no_such_task'"):
        load_tasks(["no_such_task"], TaskOptions())
    with pytest.raises(TaskError, match="cannot be read"):
        load_tasks([str(tmp_path / "none.yaml")], TaskOptions())
    path = Path(rolling_task(tmp_path))
    (tmp_path / "tiny_bpb.jsonl").unlink()
    with pytest.raises(TaskError, match="does not exist"):
        load_tasks([str(path)], TaskOptions())


def test_the_class_of_each_failure() -> None:
    assert TaskError.failure == "task"
    assert EvaluationError.failure == "bad_output"


def test_an_empty_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="a limit of 0 items leaves nothing to evaluate"):
        load_tasks([choice_task(tmp_path)], TaskOptions(limit=0))
    with pytest.raises(TaskError, match="is empty"):
        load_tasks([write_task(tmp_path, "none", CHOICE, [])], TaskOptions())
    with pytest.raises(TaskError, match="no task was named: add --tasks"):
        load_tasks([], TaskOptions())


def test_data_that_does_not_fit_the_task_is_refused(tmp_path: Path) -> None:
    wrong = {**CHOICE, "doc_to_choice": "absent_column"}
    with pytest.raises(TaskError, match=r"wrong\.yaml cannot be loaded .*YAML and its"):
        load_tasks([write_task(tmp_path, "wrong", wrong, QUESTIONS)], TaskOptions())


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ConnectionError("Couldn't reach 'x' on the Hub"), "cannot be reached .*go online"),
        (FileNotFoundError("there is no data set x"), "cannot be reached .*use local tasks"),
        (ModuleNotFoundError("No module named 'antlr4'"), "needs a package: .*antlr4"),
    ],
)
def test_data_that_cannot_be_reached_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    def load(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(TaskManager, "load", load)
    remote = {**CHOICE, "dataset_path": "someone/data", "dataset_kwargs": None}
    with pytest.raises(TaskError, match=says):
        load_tasks([write_task(tmp_path, "remote", remote, QUESTIONS)], TaskOptions())


def test_more_examples_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"with 99 examples .* fewer examples may help"):
        load_tasks([choice_task(tmp_path)], TaskOptions(num_fewshot=99))


def test_an_empty_text_is_named_by_its_item(run: Run, tmp_path: Path) -> None:
    texts = [{"text": "The engine"}, {"text": ""}]
    with pytest.raises(TaskError, match="holes, item 1, asks to score an empty text"):
        run(write_task(tmp_path, "holes", ROLLING, texts))
    blank = [{"question": "The", "choices": ["engine", end], "label": 0} for end in ("reads", "")]
    no_space = {**CHOICE, "target_delimiter": ""}
    with pytest.raises(TaskError, match="blank, item 1, asks to score an empty text"):
        run(write_task(tmp_path, "blank", no_space, blank))


def test_a_tokenizer_without_the_tokens_is_refused(
    engine: Engine, run: Run, tokenizer: Any, tmp_path: Path
) -> None:
    tokenizer.bos_token = tokenizer.eos_token = None
    engine.model.model.config.eos_token_id = None
    engine.model.model.generation_config = None
    with pytest.raises(TaskError, match="no token that begins or ends a text"):
        run(rolling_task(tmp_path))
    assert run(generation_task(tmp_path), limit=1).tasks  # which needs none


def test_a_template_that_is_not_there_is_refused(run: Run, tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = None
    with pytest.raises(TaskError, match="has no chat template: leave out"):
        run(choice_task(tmp_path), apply_chat_template=True)


def test_logits_that_are_nan_end_the_evaluation(engine: Engine, run: Run, tmp_path: Path) -> None:
    head = engine.model.model.get_output_embeddings()
    with torch.no_grad():
        head.weight[5] = float("nan")
    with pytest.raises(EvaluationError, match=r"became NaN on .*use compute.dtype=float32"):
        run(rolling_task(tmp_path))
    assert not list((tmp_path / "evaluations").glob("*.jsonl"))
