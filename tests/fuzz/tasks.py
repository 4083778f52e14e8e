"""Targets: lm-eval task files that a definition names, with what they include and list.

An input is a JSON object of file names and what they hold; the study names task.yaml. Functions
come from utils.py, which stands beside it: what a task file names is code that the user chose, so
that no input names another module, and no template has a loop without an end.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
from transformers import AutoTokenizer

from engine.contract.requests import TaskOptions
from engine.evaluate.check import check_tasks
from tests.engine.evaluate.made import CHOICE, GENERATE, QUESTIONS, ROLLING, TEXTS
from tests.fuzz.documents import Pairs, Raw, Tree, as_tree, read_json, write, write_bytes
from tests.fuzz.mutations import YAML_SCALARS
from tests.fuzz.oracle import Arena, Run
from tests.fuzz.target import Shape, Target
from tests.fuzz.tokenizers import BPE, CONFIG
from tuner.quality.key import task_digest

UTILS = "def texts(doc):\n    return doc['question']\n\n\ndef broken(doc):\n    return 1 / 0\n"
MADE = {
    "tiny.jsonl": "".join(json.dumps(one) + "\n" for one in QUESTIONS[:2]),
    "texts.jsonl": "".join(json.dumps({"text": one[:20]}) + "\n" for one in TEXTS[:2]),
    "utils.py": UTILS,
    "own/tiny.jsonl": json.dumps(QUESTIONS[0]) + "\n",
}
DATA = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "tiny.jsonl"}},
    "test_split": "test",
}
ONE = {"task": "one", "tag": ["few"], **DATA, **CHOICE, "num_fewshot": 0, "repeats": 1}
ROLLED = {
    "task": "rolled", **DATA, **ROLLING, "dataset_kwargs": {"data_files": {"test": "texts.jsonl"}},
}  # fmt: skip
FILES = (
    {"task.yaml": {**ONE, "metadata": {"version": 1.0}}},
    {"task.yaml": {"task": "two", "include": "base.yaml"}, "base.yaml": {**DATA, **GENERATE}},
    {"task.yaml": {"task": "fun", **DATA, **CHOICE, "doc_to_text": "!function utils.texts"}},
    {
        "task.yaml": {"group": "both", "task": ["one", "rolled"], "aggregate_metric_list": [
            {"metric": "acc", "aggregation": "mean", "weight_by_size": True}]},
        "one.yaml": ONE, "own/rolled.yaml": ROLLED,
    },
)  # fmt: skip
EXTRA = (
    Raw("!function utils.texts"), Raw("!function utils.broken"), Raw("!function utils.missing"),
    Raw("!function utils"), Raw("!function nowhere.at_all"), Raw("!function [a]"), "task.yaml",
    "base.yaml",
    "one", "rolled", "both", "few", "json", "csv", "/etc", "../..", "/etc/passwd", "*", "**",
    "own", "./own",
    "{{question}}", "{{choices}}", "{{label}}", "{{missing}}", "{{ 1 / 0 }}", "{% for a in b %}",
    "multiple_choice", "generate_until", "loglikelihood", "acc", "bits_per_byte", "exact_match",
    "f1", "test", "train",
    "tiny.jsonl",
)  # fmt: skip
NAME = re.compile(r"(own/)?[a-z_]{1,20}\.yaml")


def _write(tree: Tree) -> bytes:
    """The files of a tree as YAML texts, in a JSON object; what is no object is task.yaml."""
    if not isinstance(tree, Pairs):
        tree = Pairs([["task.yaml", tree]])
    texts = {str(name): _yaml(value) for name, value in tree}
    return write_bytes(as_tree(texts))


def _yaml(value: Tree) -> str:
    return re.sub(r'"(!function [\w.]*)"', r"\1", write(value))


def write_files(folder: Path, data: bytes) -> None:
    """The files that an input describes, beside those that are always there."""
    for path in folder.rglob("*.yaml"):
        path.unlink()
    try:
        found = json.loads(data)
        texts = {name: text for name, text in found.items() if isinstance(text, str)}
    except (ValueError, AttributeError, RecursionError):
        texts = {"task.yaml": data.decode("latin-1")}
    for name, text in texts.items():
        if NAME.fullmatch(name):
            (folder / name).write_text(_known(text), encoding="utf-8", errors="surrogatepass")


def _known(text: str) -> str:
    """The text with functions of utils.py, or of nothing, alone."""
    return re.sub(r"!function(?!\s+['\"]?(utils|nowhere)\b)", "!other", text)


@contextlib.contextmanager
def _folder(place: Arena) -> Iterator[Path]:
    folder = place.given / "tasks"
    (folder / "own").mkdir(parents=True, exist_ok=True)
    for name, text in MADE.items():
        (folder / name).write_text(text, encoding="utf-8")
    yield folder


def of_tasks(read: Callable[[str], object]) -> Callable[[Arena], Any]:
    """Opens a target that is given the path of a task file."""

    @contextlib.contextmanager
    def opened(place: Arena) -> Iterator[Run]:
        with _folder(place) as folder:

            def run(data: bytes) -> None:
                write_files(folder, data)
                read(str(folder / "task.yaml"))

            yield run

    return opened


@contextlib.contextmanager
def _loaded(place: Arena) -> Iterator[Run]:
    """Tasks are read, their data too, and every request is built."""
    model = place.given / "model"
    model.mkdir()
    (model / "tokenizer.json").write_text(json.dumps(BPE), encoding="utf-8")
    (model / "tokenizer_config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(model)
    options = TaskOptions(limit=2)
    kept = place.cache / "datasets"
    with (
        _folder(place) as folder,
        mock.patch.object(datasets.config, "HF_DATASETS_CACHE", kept),
        mock.patch.object(datasets.config, "HF_MODULES_CACHE", str(kept / "modules")),
        mock.patch.object(datasets.config, "HF_HUB_OFFLINE", True),
    ):

        def run(data: bytes) -> None:
            write_files(folder, data)
            check_tasks(tokenizer, "m", [str(folder / "task.yaml")], options)

        yield run


@cache
def _seeds() -> list[bytes]:
    return [_write(as_tree(one)) for one in FILES]


def _trees(data: bytes) -> Tree:
    """The tree of a seed: what its YAML texts hold, which here is JSON but for functions."""
    found = json.loads(data)
    return Pairs([name, read_json(_quoted(text))] for name, text in found.items())


def _quoted(text: str) -> str:
    return re.sub(r"(!function [\w.]*)", r'"\1"', text)


YAML = Shape(_trees, _write, extra=(*YAML_SCALARS, *EXTRA))
TARGETS = (
    Target("task_files", of_tasks(task_digest), _seeds, YAML, cases=80),
    Target("tasks", _loaded, _seeds, YAML, cases=10, most_s=15),
)
