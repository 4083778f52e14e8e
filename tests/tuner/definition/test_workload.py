"""Workload files and prompt files."""

from pathlib import Path

import pytest

from tuner.definition.workload import load_prompts, load_workload, workload_hash
from tuner.errors import DefinitionError


def test_prompts_and_continuations_come_from_jsonl(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"prompt": "a", "continuation": "b"}\n\n{"prompt": "c", "continuation": "d"}\n'
    )
    assert load_prompts(path) == (("a", "c"), ("b", "d"))


def test_continuations_count_only_when_every_line_has_one(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "continuation": "b"}\n{"prompt": "c"}\n')
    assert load_prompts(path) == (("a", "c"), ())


def test_text_has_one_prompt_a_line(tmp_path: Path):
    path = tmp_path / "p.txt"
    path.write_text("first\n\nsecond\n")
    assert load_prompts(path) == (("first", "second"), ())


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.txt", "\n", "is empty"),
        ("p.jsonl", "nothing\n", "line 1"),
        ("p.jsonl", '{"text": "a"}\n', '"prompt"'),
        ("absent", None, "cannot be read"),
    ],
)
def test_a_bad_prompts_file_is_said(tmp_path: Path, name: str, text: str | None, says: str):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(DefinitionError, match=says):
        load_prompts(path)


def test_changes_lie_over_the_file_and_change_the_hash(tmp_path: Path):
    path = tmp_path / "w.yaml"
    path.write_text("name: w\nprompts: [a]\n")
    plain, longer = load_workload(path), load_workload(path, output_tokens=9, sequences=None)
    assert (longer.output_tokens, longer.sequences) == (9, plain.sequences)
    assert workload_hash(longer) != workload_hash(plain)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("prompts: [a, '']", "prompt 2 is empty"),
        ("prompts: [a, b]\ncontinuations: [c]", "2 prompts need as many continuations"),
        ("prompts: [a, b]\ncontinuations: ['', c]", "or none; it has 1"),
        ("prompts: p.txt\ncontinuations: [c]", r"p\.txt brings its own"),
        ("prompts: [a, 5]", r"prompts\.1 = 5: Input should be a valid string$"),
    ],
)
def test_prompts_in_a_workload_are_whole(tmp_path: Path, keys: str, says: str):
    path = tmp_path / "w.yaml"
    path.write_text(f"name: w\n{keys}\n")
    with pytest.raises(DefinitionError, match=says):
        load_workload(path)
