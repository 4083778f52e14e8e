"""The demo study's texts, tasks and model card are complete and consistent."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer

DEMO = Path(__file__).parents[2] / "studies/demo"
TASKS = ("demo_bpb", "demo_choice", "demo_mmlu")


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DEMO / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def card() -> str:
    return (DEMO / "README.md").read_text()


@pytest.mark.parametrize("task", TASKS)
def test_a_task_definition_names_data_that_lies_beside_it(task: str) -> None:
    definition = yaml.safe_load((DEMO / f"tasks/{task}.yaml").read_text())
    assert definition["task"] == task
    assert definition["dataset_path"] == "json"
    data_files = definition["dataset_kwargs"]["data_files"]
    assert set(data_files) == {definition["test_split"]}
    assert all((DEMO / "tasks" / name).is_file() for name in data_files.values())


def test_passages_are_many_distinct_and_of_the_stated_size() -> None:
    texts = [row["text"] for row in rows("tasks/demo_bpb.jsonl")]
    assert len(texts) >= 300
    assert len(set(texts)) == len(texts)
    assert all(500 <= len(text.encode()) <= 1500 for text in texts)


def test_choices_have_one_true_ending_among_four_of_similar_length() -> None:
    items = rows("tasks/demo_choice.jsonl")
    assert len(items) >= 1000
    for item in items:
        assert len(set(item["choices"])) == 4
        assert item["label"] in range(4)
        lengths = [len(choice) for choice in item["choices"]]
        assert max(lengths) - min(lengths) <= 20
    fractions = [sum(item["label"] == n for item in items) / len(items) for n in range(4)]
    assert all(0.2 <= fraction <= 0.3 for fraction in fractions)


def test_the_true_ending_follows_its_context_in_the_held_out_text() -> None:
    text = (DEMO / "heldout.txt").read_text()
    known = [item for item in rows("tasks/demo_choice.jsonl") if item["context"] in text]
    assert len(known) >= 300
    for item in known:
        after = text.split(item["context"], 1)[1]
        assert after[1:].startswith(item["choices"][item["label"]])


def test_mmlu_questions_have_four_answers() -> None:
    questions = rows("tasks/demo_mmlu.jsonl")
    assert len(questions) >= 200
    assert all(len(q["choices"]) == 4 and q["label"] in range(4) for q in questions)


def test_prompts_and_their_continuations_are_long_enough() -> None:
    tokenizer = Tokenizer.from_file(str(DEMO / "model/tokenizer.json"))
    prompts = rows("prompts.jsonl")
    assert len(prompts) >= 64
    for row in prompts:
        assert set(row) == {"prompt", "continuation"}
        assert all(len(tokenizer.encode(text).ids) >= 200 for text in row.values())


def test_no_prompt_shares_its_document_with_another_prompt_or_a_task() -> None:
    texts = [row["prompt"] + row["continuation"] for row in rows("prompts.jsonl")]
    assert len({text[:80] for text in texts}) == len(texts)
    pieces = [row["text"][:120] for row in rows("tasks/demo_bpb.jsonl")]
    pieces += [item["context"][-120:] for item in rows("tasks/demo_choice.jsonl")]
    together = "\0".join(texts)
    assert not [piece for piece in pieces if piece in together]


def test_held_out_documents_are_separated_and_within_a_megabyte() -> None:
    raw = (DEMO / "heldout.txt").read_bytes()
    assert len(raw) <= 1_000_000
    assert len(raw.decode().strip().split("\n\n")) >= 100


def test_the_model_card_states_its_figures(card: str) -> None:
    quality = re.search(r"^\| held-out bits per byte \| ([\d.]+) \|$", card, re.MULTILINE)
    hit_rate = re.search(r"^\| LRU hit rate, 16 of 64 experts \| ([\d.]+) \|$", card, re.MULTILINE)
    assert quality is not None
    assert hit_rate is not None
    assert float(quality[1]) <= 1.9
    assert 0.5 <= float(hit_rate[1]) <= 0.8
    assert re.search(r"^\| tokens seen \| [\d,]+ \|$", card, re.MULTILINE)


def test_the_model_card_names_a_licence_for_every_source(card: str) -> None:
    table = re.findall(r"^\| `([\w.+-]+)` \| (\S+) \| ([\d.]+) \| (.+) \|$", card, re.MULTILINE)
    assert len(table) >= 20
    assert all(licence.strip() for *_, licence in table)


def test_the_model_is_the_family_and_size_that_the_card_says(card: str) -> None:
    config = json.loads((DEMO / "model/config.json").read_text())
    assert config["model_type"] == "qwen3_moe"
    assert config["norm_topk_prob"] is True
    assert (config["hidden_size"], config["num_hidden_layers"]) == (128, 16)
    assert "16 layers" in card
    size = sum(path.stat().st_size for path in (DEMO / "model").iterdir())
    assert size <= 40_000_000
