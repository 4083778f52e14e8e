"""Small lm-eval tasks as YAML files with their data beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.engine.conftest import TEXT

TEXTS = tuple(TEXT[start : start + 90] for start in range(0, 40, 8))
QUESTIONS = tuple(
    {
        "question": TEXT[start : start + 30],
        "choices": [TEXT[start + 30 : start + 40], " model", "disk and more"],
        "label": start % 3,
    }
    for start in range(0, 48, 6)
)
ROLLING: dict[str, Any] = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
}
CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{label}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
GENERATE: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{choices[0]}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
    "metric_list": [{"metric": "exact_match"}],
}


def write_task(folder: Path, name: str, body: dict[str, Any], docs: Sequence[Any]) -> str:
    """NAME.yaml and NAME.jsonl in a folder; the YAML's path."""
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "test_split": "test",
        **body,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(task))
    return str(path)


def rolling_task(folder: Path, texts: Sequence[str] = TEXTS) -> str:
    """Bits per byte of texts."""
    return write_task(folder, "tiny_bpb", ROLLING, [{"text": text} for text in texts])


def choice_task(folder: Path) -> str:
    """One of three endings, eight items."""
    return write_task(folder, "tiny_choice", CHOICE, QUESTIONS)


def generation_task(folder: Path) -> str:
    """Six tokens after each question."""
    return write_task(folder, "tiny_generation", GENERATE, QUESTIONS)
