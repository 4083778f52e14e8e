"""What a task file consists of, read without running anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.contract import task_data
from engine.contract.task_data import data_patterns, files_of, search_folders
from engine.contract.task_file import FunctionName, read_task_file, with_members
from engine.errors import TaskError


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_file_replaces_keys_of_the_files_it_includes(tmp_path: Path) -> None:
    write(tmp_path, "common/base.yaml", "task: base\noutput_type: a\ndescription: base\n")
    write(tmp_path, "middle.yaml", "include: common/base.yaml\noutput_type: b\n")
    found = read_task_file(write(tmp_path, "own.yaml", "include: [middle.yaml]\ntask: own\n"))
    assert found.body == {"task": "own", "output_type": "b", "description": "base"}
    assert found.folders["description"] == tmp_path / "common"
    assert [path.name for path in found.sources] == ["own.yaml", "middle.yaml", "base.yaml"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("include: own.yaml\ntask: t\n", "own.yaml includes itself"),
        ("include: none.yaml\ntask: t\n", "none.yaml cannot be read: No such file"),
        ("- a\n", "holds no keys and values"),
        ("output_type: x\n", "names no `task` and no `group`"),
        ("a: [\n", "own.yaml cannot be read: while parsing"),
        ("task: t\noutput_type: a\ntask: u\n", "the key 'task' stands twice: keep one"),
        ("task: !python/object:os.system x\n", "own.yaml cannot be read: could not determine"),
        ('include: "a\\0"\ntask: t\n', "which is no file"),
        ("task: t\n1: a\n", "its key 1 is no text"),
        ("task: t\ntag: 1\n", "its tag must be a name"),
        ("task: t\nmetadata: {1: a, b: c}\n", "its key 1 is no text"),
        ("task: t\nmetadata:\n  ? !function f.g\n  : a\n", "its key f.g is no text"),
        ("task: t\nmetadata: {!!binary YQ==: a}\n", "is no text"),
        ("task: t\ndataset_kwargs: data\n", "dataset_kwargs must be keys and values"),
        ("task: t\ndataset_kwargs: {data_files: {test: {a: b}}}\n", "data_files must be a name"),
        ("task: t\ntag: {a: b}\n", "tag must be a name"),
        ("task: t\nmetric_list: acc\n", "metric_list must be a list"),
        ("task: [[a]]\n", "task must be a name"),
        ("task: [{task: a, dataset_kwargs: 1}]\n", "dataset_kwargs must be keys and values"),
    ],
)
def test_what_is_no_task_file_is_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(TaskError, match=says):
        read_task_file(write(tmp_path, "own.yaml", text))


def test_files_that_include_each_other_ever_more_often_are_refused(tmp_path: Path) -> None:
    for number in range(9):
        write(tmp_path, f"{number}.yaml", f"include: [{', '.join([f'{number + 1}.yaml'] * 9)}]\n")
    write(tmp_path, "9.yaml", "task: t\n")
    with pytest.raises(TaskError, match="includes more than 100 files"):
        read_task_file(tmp_path / "0.yaml")


@pytest.mark.parametrize("name", ["~nobody-has-this-name/x", "a" * 5000, "a\\0b"])
def test_data_of_an_impossible_name_is_no_data(tmp_path: Path, name: str) -> None:
    text = f'task: t\ndataset_path: "{name}"\ndataset_kwargs: {{data_files: "{name}"}}\n'
    assert files_of(read_task_file(write(tmp_path, "t.yaml", text))) == ()


def test_a_folder_of_very_many_files_is_not_the_data_of_a_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_data, "MOST_FILES", 2)
    for name in "abc":
        write(tmp_path, f"data/{name}.txt", "x")
    for named in ("dataset_path: data", "dataset_kwargs: {data_files: 'data/**'}"):
        task = read_task_file(write(tmp_path, "t.yaml", f"task: t\n{named}\n"))
        with pytest.raises(TaskError, match="holds more than 2 files"):
            files_of(task)


def test_a_function_is_only_a_name(tmp_path: Path) -> None:
    write(tmp_path, "utils.py", "raise SystemExit\n")
    found = read_task_file(write(tmp_path, "t.yaml", "task: t\nprocess_docs: !function utils.f\n"))
    assert found.body["process_docs"] == FunctionName("utils.f", tmp_path)
    assert files_of(found) == (tmp_path / "utils.py",)


def test_modules_that_a_module_imports_from_its_folder_belong_to_it(tmp_path: Path) -> None:
    write(tmp_path, "utils.py", "import json\nfrom helper import x\n")
    write(tmp_path, "helper.py", "import deeper\n")
    write(tmp_path, "deeper.py", "")
    write(tmp_path, "other.py", "")
    found = read_task_file(write(tmp_path, "t.yaml", "task: t\nmetric: !function utils.f\n"))
    assert [path.name for path in files_of(found)] == ["deeper.py", "helper.py", "utils.py"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ("a.jsonl", {"": ["a.jsonl"]}),
        ("[a.jsonl, b.jsonl]", {"": ["a.jsonl", "b.jsonl"]}),
        ("{test: a.jsonl, train: [b.jsonl]}", {"test": ["a.jsonl"], "train": ["b.jsonl"]}),
        ("{test: '*.jsonl'}", {"test": ["*.jsonl"]}),
    ],
)
def test_data_lies_beside_the_file(
    tmp_path: Path, files: str, expected: dict[str, list[str]]
) -> None:
    write(tmp_path, "a.jsonl", "1")
    write(tmp_path, "b.jsonl", "2")
    text = f"task: t\ndataset_kwargs:\n  data_files: {files}\n"
    found = read_task_file(write(tmp_path, "t.yaml", text))
    patterns = data_patterns(found.body, search_folders(found, "dataset_kwargs"))
    assert patterns == {
        split: [str(tmp_path / name) for name in names] for split, names in expected.items()
    }
    assert tmp_path / "a.jsonl" in files_of(found)


def test_data_of_an_included_file_lies_beside_that_or_beside_the_task(tmp_path: Path) -> None:
    base = "dataset_kwargs: {data_files: {test: a.jsonl, train: b.jsonl}}\n"
    write(tmp_path, "common/base.yaml", base)
    write(tmp_path, "common/a.jsonl", "1")
    write(tmp_path, "b.jsonl", "2")
    found = read_task_file(write(tmp_path, "t.yaml", "include: common/base.yaml\ntask: t\n"))
    assert files_of(found) == (tmp_path / "b.jsonl", tmp_path / "common" / "a.jsonl")


def test_a_name_is_found_from_the_working_folder_as_lm_eval_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write(tmp_path, "data/a.jsonl", "1")
    text = "task: t\ndataset_kwargs: {data_files: data/a.jsonl}\n"
    assert files_of(read_task_file(write(tmp_path, "tasks/t.yaml", text))) == (data,)


def test_a_folder_of_data_belongs_to_the_task_with_all_its_files(tmp_path: Path) -> None:
    write(tmp_path, "many/a.jsonl", "1")
    write(tmp_path, "many/b.jsonl", "2")
    own = read_task_file(write(tmp_path, "t.yaml", "task: t\ndataset_path: many\n"))
    text = "task: u\ndataset_path: json\ndataset_kwargs: {data_dir: many}\n"
    for found in (own, read_task_file(write(tmp_path, "u.yaml", text))):
        assert [path.name for path in files_of(found)] == ["a.jsonl", "b.jsonl"]


def test_a_groups_members_are_found_beside_it_by_name_and_tag(tmp_path: Path) -> None:
    for name, tag in (("one", "pair"), ("two", "[pair, x]"), ("three", "other")):
        write(tmp_path, f"sub/{name}.yaml", f"task: {name}\ntag: {tag}\n")
    write(tmp_path, "inner.yaml", "group: inner\ntask: [three]\n")
    group = "group: g\ntask:\n  - pair\n  - {group: more, task: [inner]}\n  - outside\n"
    found = read_task_file(write(tmp_path, "g.yaml", group))
    assert [one.name for one in with_members(found)] == ["g", "inner", "one", "three", "two"]


@pytest.mark.parametrize(
    ("text", "name", "is_group"),
    [
        ("task: [a, b]\n", "own", True),
        ("group: g\ntask: a\n", "g", True),
        ("group: old\ntask: a\noutput_type: generate_until\n", "a", False),
    ],
)
def test_older_forms_of_groups_and_tags(
    tmp_path: Path, text: str, name: str, is_group: bool
) -> None:
    found = read_task_file(write(tmp_path, "own.yaml", text))
    assert (found.name, found.is_group) == (name, is_group)
    assert is_group or found.tags == ("old",)
