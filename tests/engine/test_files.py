"""Where the data of an installation are looked for."""

from pathlib import Path

import pytest
import yaml

from engine import files
from tuner.folders import SOURCE


def test_the_studies_of_the_source_tree_are_used_in_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("EXPERTUNE_STUDIES", raising=False)
    assert files.studies_folder() == SOURCE / "studies"


def test_an_installation_uses_its_own_and_not_what_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("EXPERTUNE_STUDIES", raising=False)
    monkeypatch.setattr(files, "__file__", str(tmp_path / "engine" / "files.py"))
    (tmp_path / "studies").mkdir()  # of another package
    (tmp_path / "engine" / "studies").mkdir(parents=True)
    assert files.studies_folder() == tmp_path / "engine" / "studies"


def test_a_folder_that_is_named_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EXPERTUNE_STUDIES", str(tmp_path))
    assert files.studies_folder() == tmp_path


@pytest.mark.parametrize(
    ("text", "line"), [("a: 1\na: 2\n", 2), ("a: {b: 1, b: 1}\n", 1), ("a:\n- {1: x, 1: y}\n", 2)]
)
def test_a_key_that_stands_twice_is_an_error_with_its_line(text: str, line: int):
    with pytest.raises(yaml.YAMLError, match=rf"stands twice: keep one\s+.*line {line}\b"):
        yaml.load(text, Loader=files.UniqueKeys)


def test_keys_that_differ_are_kept():
    assert yaml.load("a: 1\nb: {a: 2}\n", Loader=files.UniqueKeys) == {"a": 1, "b": {"a": 2}}
