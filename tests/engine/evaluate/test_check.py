"""Task files as lm-eval's guide describes them: they load, or are refused in one sentence."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from transformers import AutoTokenizer

from engine.contract.requests import TaskNeed, TaskOptions
from engine.errors import TaskError
from engine.evaluate.check import check_tasks
from tests.engine.evaluate.made import CHOICE, GENERATE, QUESTIONS, ROLLING, choice_task, write_task

pytestmark = pytest.mark.filterwarnings("ignore")
Check = Callable[..., dict[str, TaskNeed]]
LINES = "".join(json.dumps(one) + "\n" for one in QUESTIONS)


@pytest.fixture
def check(tiny_folder: Path) -> Check:
    """What each task needs, by name."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)

    def invoke(*tasks: str | Path, **options: Any) -> dict[str, TaskNeed]:
        found = check_tasks(tokenizer, "tiny", [str(one) for one in tasks], TaskOptions(**options))
        return {need.task: need for need in found}

    return invoke


def task(folder: Path, name: str, body: dict[str, Any], code: str = "", **keys: Any) -> str:
    """A task over QUESTIONS; code: further lines of YAML, for functions; None drops a key."""
    path = Path(write_task(folder, name, {**body, **keys}, QUESTIONS))
    kept = {k: v for k, v in yaml.safe_load(path.read_text()).items() if v is not None}
    path.write_text(yaml.safe_dump(kept) + code)
    return str(path)


def test_what_a_task_needs_is_counted_in_tokens(check: Check, tmp_path: Path) -> None:
    needs = check(
        choice_task(tmp_path),
        task(tmp_path, "gen", GENERATE),
        write_task(tmp_path, "roll", ROLLING, [{"text": "a longer text " * 100}]),
    )
    assert needs["roll"] == TaskNeed("roll")  # read in windows
    generated = needs["gen"]
    assert generated.new_tokens == 6
    assert 5 < generated.prompt_tokens <= 30
    chosen = needs["tiny_choice"]
    assert 0 < chosen.target_tokens < chosen.scored_tokens
    assert chosen.new_tokens == 0


@pytest.mark.parametrize(
    ("dataset", "files", "split"),
    [
        ("json", {"test": "x.jsonl"}, "test"),
        ("json", {"test": ["x.jsonl", "x.jsonl"]}, "test"),
        ("json", "x.jsonl", "train"),
        ("json", ["x.jsonl"], "train"),
        ("json", {"test": "*.jsonl"}, "test"),
        ("json", {"test": "x.jsonl.gz"}, "test"),
        ("json", {"test": "bom.jsonl"}, "test"),
        ("csv", {"test": "x.csv"}, "test"),
        ("parquet", {"test": "x.parquet"}, "test"),
        ("arrow", {"test": "saved/*.arrow"}, "test"),
    ],
)
def test_every_form_of_data_files(
    check: Check, tmp_path: Path, dataset: str, files: Any, split: str
) -> None:
    folder = tmp_path / "odd [name]"  # which the data library would take for a pattern
    folder.mkdir()
    (folder / "x.jsonl").write_text(LINES)
    (folder / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + LINES.encode())
    (folder / "x.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    (folder / "x.csv").write_text("\ufeffquestion,choices\nThe engine,reads\n", encoding="utf-8")
    rows = datasets.Dataset.from_list(list(QUESTIONS))
    rows.to_parquet(folder / "x.parquet")
    rows.save_to_disk(folder / "saved")
    body = {**GENERATE, "doc_to_target": "{{choices}}"}
    kwargs = {"data_files": files}
    path = Path(task(folder, "t", body, dataset_path=dataset, test_split=split))
    asked = {**yaml.safe_load(path.read_text()), "dataset_kwargs": kwargs}
    path.write_text(yaml.safe_dump(asked))
    assert check(path)["t"].new_tokens == 6


@pytest.mark.parametrize(
    "keys",
    [
        {"dataset_path": "many", "dataset_kwargs": None, "test_split": "train"},
        {"dataset_kwargs": {"data_dir": "many"}, "test_split": "train"},
        {"dataset_kwargs": {"data_dir": "many", "data_files": {"test": "a.jsonl"}}},
    ],
)
def test_folders_of_data(check: Check, tmp_path: Path, keys: dict[str, Any]) -> None:
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "a.jsonl").write_text(LINES)
    assert check(task(tmp_path, "t", GENERATE, **keys))["t"].new_tokens == 6


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"dataset_kwargs": {"data_files": {"test": "none.jsonl"}}}, "none.jsonl does not exist"),
        ({"dataset_kwargs": {"data_files": {"test": "empty.jsonl"}}}, "empty.jsonl is empty"),
        ({"dataset_kwargs": {"data_files": {"test": "blank.jsonl"}}}, r"data: .*blank\.jsonl"),
        ({"dataset_kwargs": {"data_files": {"test": "bad.jsonl"}}}, "JSON parse error.*bad.jsonl"),
        ({"dataset_kwargs": {"data_dir": "nowhere"}}, "its data_dir nowhere does not exist"),
        (
            {"dataset_path": "./nowhere", "dataset_kwargs": None},
            "dataset_path ./nowhere is no fold",
        ),
        ({"dataset_path": "saved", "dataset_kwargs": None}, "was written by save_to_disk"),
        ({"test_split": "dev"}, "its data has no split 'dev', which test_split names"),
        ({"doc_to_text": "{{absent}}"}, r"UndefinedError: 'absent' is undefined"),
        ({"doc_to_text": "{{question"}, "TemplateSyntaxError"),
        ({"metric_list": [{"metric": "exact_mach"}]}, "no metric 'exact_mach'.*'exact_match'"),
        ({"metrics": 1}, "unexpected keyword argument 'metrics'"),
        ({"output_type": "classify"}, "invalid output_type 'classify'"),
        ({"filter_list": [{"name": "f", "filter": [{"function": "zip"}]}]}, "Unknown filter 'zip'"),
        (
            {
                "filter_list": [
                    {"name": "f", "filter": [{"function": "regex", "regex_pattern": "("}]}
                ]
            },
            "t cannot score an answer .*unterminated subpattern",
        ),
        ({"generation_kwargs": {"num_beams": 4}}, "num_beams = 4 is not honoured"),
        ({"repeats": "three"}, "repeats = 'three' must be a whole number of 1 or more"),
        ({"repeats": 0}, "repeats = 0 must be"),
        ({"num_fewshot": -1}, "num_fewshot = -1 must be a whole number of 0 or more"),
        ({"metric_list": []}, "the task t has no metric"),
        ({"doc_to_text": ""}, "t, item 0, asks to continue an empty prompt"),
        ({"num_fewshot": 2, "fewshot_config": {"sampler": "best"}}, "contextsampler 'best'"),
    ],
)
def test_a_broken_task_file_is_refused_with_the_reason(
    check: Check, tmp_path: Path, keys: dict[str, Any], says: str
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "blank.jsonl").write_text("\n")
    (tmp_path / "bad.jsonl").write_text("{no json}\n")
    datasets.Dataset.from_list(list(QUESTIONS)).save_to_disk(tmp_path / "saved")
    with pytest.raises(TaskError, match=says) as refused:
        check(task(tmp_path, "t", GENERATE, **keys))
    assert refused.value.exit_code == 2
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("target", ["{{question}}", "{{label + 7}}"])
def test_choices_without_the_target_are_refused(check: Check, tmp_path: Path, target: str) -> None:
    # lm-eval warns "Label index was not in within range" for each item and counts it as wrong
    # (EleutherAI/lm-evaluation-harness), which is a quality of 0 for every config
    with pytest.raises(TaskError, match=r"no item is one of its choices|cannot be loaded"):
        check(task(tmp_path, "t", CHOICE, doc_to_target=target))


CODE = """
def ask(doc): return {"question": doc["question"] + "?"}
def docs(data): return data.map(ask)
def text(doc): return doc["question"]
def target(doc): return doc["choices"][0]
def choices(doc): return doc["choices"]
def results(doc, answers): return {"mine": float(answers[0] == doc["choices"][0])}
def metric(references, predictions, **_): return float(references == predictions)
def total(values): return sum(values) / len(values)
def strip(replies, docs): return [[one.strip() for one in row] for row in replies]
def shots(): return [{"question": "Q", "choices": ["a", "b", "c"], "label": 0}]
"""
MINE = {"metric_list": [{"metric": "mine", "aggregation": "mean", "higher_is_better": True}]}
METRIC = "metric_list:\n- {metric: !function utils.metric, aggregation: !function utils.total, "


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (GENERATE, "process_docs: !function utils.docs\n"),
        ({**GENERATE, "doc_to_text": None}, "doc_to_text: !function utils.text\n"),
        ({**GENERATE, "doc_to_target": None}, "doc_to_target: !function utils.target\n"),
        ({**CHOICE, "doc_to_choice": None}, "doc_to_choice: !function utils.choices\n"),
        ({**GENERATE, **MINE}, "process_results: !function utils.results\n"),
        ({**GENERATE, "metric_list": None}, METRIC + "higher_is_better: true}\n"),
        (
            GENERATE,
            "filter_list:\n- name: f\n  filter:\n"
            "  - {function: custom, filter_fn: !function utils.strip}\n"
            "  - {function: take_first}\n",
        ),
        (
            {**CHOICE, "num_fewshot": 1},
            "fewshot_config: {sampler: first_n, samples: !function utils.shots}\n",
        ),
    ],
)
def test_functions_run_wherever_the_guide_allows_them(
    check: Check, tmp_path: Path, body: dict[str, Any], code: str
) -> None:
    # unslothai/unsloth#6824 and lm-eval's own task folders: every trial failed over a `!function`
    (tmp_path / "utils.py").write_text(CODE)
    assert check(task(tmp_path, "t", body, code)).keys() == {"t"}


def test_functions_of_an_included_file_lie_beside_that(check: Check, tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "utils.py").write_text(CODE)
    task(tmp_path / "common", "base", GENERATE, "process_docs: !function utils.docs\n")
    own = tmp_path / "own.yaml"
    own.write_text("include: common/base.yaml\ntask: own\n")
    plain = check(task(tmp_path, "plain", GENERATE))["plain"]
    assert check(own)["own"].prompt_tokens == plain.prompt_tokens + 1  # the question mark


def test_two_modules_of_one_name_stay_apart(check: Check, tmp_path: Path) -> None:
    for name, mark in (("one", "?"), ("two", "?" * 9)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "utils.py").write_text(CODE.replace('"?"', repr(mark)))
        task(tmp_path / name, name, GENERATE, "process_docs: !function utils.docs\n")
    needs = check(tmp_path / "one" / "one.yaml", tmp_path / "two" / "two.yaml")
    assert needs["two"].prompt_tokens > needs["one"].prompt_tokens


def test_an_edited_function_counts_at_once(check: Check, tmp_path: Path) -> None:
    """Also what the data library remembers of a function is under the function's name."""
    (tmp_path / "utils.py").write_text(CODE)
    path = task(tmp_path, "t", GENERATE, "process_docs: !function utils.docs\n")
    before = check(path)["t"].prompt_tokens
    (tmp_path / "utils.py").write_text(CODE.replace('"?"', '"? Once more, in many words."'))
    assert check(path)["t"].prompt_tokens > before + 4


@pytest.mark.parametrize(
    ("module", "code", "says"),
    [
        ("", "process_docs: !function utils.docs\n", r"utils\.py has no function 'docs'"),
        ("import no_such_package\n", "process_docs: !function utils.f\n",
         r"utils\.py, line 1, raised ModuleNotFoundError: No module named 'no_such_package'"),
        ("def f(:\n", "process_docs: !function utils.f\n", r"utils\.py, line 1, raised SyntaxErr"),
        ("raise SystemExit(3)\n", "process_docs: !function utils.f\n",
         r"utils\.py, line 1, raised SystemExit: 3"),
        ("def f(data):\n    return data.absent\n", "process_docs: !function utils.f\n",
         r"utils\.py, function f, line 2, raised AttributeError"),
        ("def f(doc, answers):\n    raise ValueError('boom')\n",
         "process_results: !function utils.f\n",
         r"t cannot score an answer: .*utils\.py, function f, line 2, raised ValueError: boom"),
        ("def f(values):\n    return 1 / 0\n",
         "metric_list: [{metric: exact_match, aggregation: !function utils.f}]\n",
         r"cannot aggregate exact_match: .*utils\.py, function f, line 2, raised ZeroDivision"),
        ("", "process_docs: !function f\n", "names no module: write module.function"),
        ("", "process_docs: !function absent_module.f\n", "No module named 'absent_module'"),
    ],
)  # fmt: skip
def test_code_that_fails_is_named_by_file_and_function(
    check: Check, tmp_path: Path, module: str, code: str, says: str
) -> None:
    (tmp_path / "utils.py").write_text(module)
    body = {**GENERATE, "metric_list": None} if "metric_list" in code else GENERATE
    with pytest.raises(TaskError, match=says) as refused:
        check(task(tmp_path, "t", body, code))
    assert "\n" not in str(refused.value)


def test_code_that_stumbles_over_some_answers_is_no_reason_to_refuse(
    check: Check, tmp_path: Path
) -> None:
    code = "def f(doc, answers):\n    return {'mine': float(answers[0].split()[3] == 'x')}\n"
    (tmp_path / "utils.py").write_text(code)
    assert check(task(tmp_path, "t", {**GENERATE, **MINE}, "process_results: !function utils.f\n"))


GROUPS = {
    "members by name": {"group": "g", "task": ["one", "two"]},
    "a list": {"task": ["one", "two"]},
    "nested": {"group": "g", "task": ["one", {"group": "inner", "task": ["two"]}]},
    "a tag": {"group": "g", "task": ["pair"]},
    "overrides": {"group": "g", "task": [{"task": "one", "num_fewshot": 0}, "two"]},
}


@pytest.mark.parametrize("form", GROUPS)
def test_groups_of_files_that_lie_beside(check: Check, tmp_path: Path, form: str) -> None:
    for name in ("one", "two"):
        task(tmp_path, name, CHOICE, tag="pair")
    path = tmp_path / "group.yaml"
    weighed = {"aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}]}
    path.write_text(yaml.safe_dump({**GROUPS[form], **weighed}))
    assert check(path).keys() == {"one", "two"}


def test_a_group_may_hold_whole_tasks(check: Check, tmp_path: Path) -> None:
    inline = yaml.safe_load(Path(task(tmp_path, "one", CHOICE)).read_text())
    path = tmp_path / "group.yaml"
    path.write_text(yaml.safe_dump({"group": "g", "task": [{**inline, "task": "inside"}]}))
    assert check(path).keys() == {"g::inside"}


def test_a_task_that_is_asked_for_twice_is_refused(check: Check, tmp_path: Path) -> None:
    one = task(tmp_path, "one", CHOICE)
    (tmp_path / "g.yaml").write_text("group: g\ntask: [one]\n")
    with pytest.raises(TaskError, match=r"task one is asked for twice, by .*one.yaml and by .*g.y"):
        check(one, tmp_path / "g.yaml")
    assert check(one, one).keys() == {"one"}


def test_a_group_without_tasks_is_refused(check: Check, tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_text("group: g\ntask: []\n")
    with pytest.raises(TaskError, match=r"group .*g.yaml has no tasks"):
        check(tmp_path / "g.yaml")


@pytest.mark.parametrize(
    "keys",
    [
        {"num_fewshot": 2, "fewshot_split": "test"},
        {"num_fewshot": 2, "fewshot_split": "test", "fewshot_config": {"sampler": "first_n"}},
        {"num_fewshot": 1, "fewshot_config": {"sampler": "first_n", "samples": [QUESTIONS[0]]}},
        {"description": "Answer well.\n", "target_delimiter": "", "should_decontaminate": True},
        {"gen_prefix": "Answer:", "metadata": {"version": 2.0}},
    ],
)
@pytest.mark.parametrize("template", [False, True])
def test_few_shots_descriptions_and_prefixes(
    check: Check, tmp_path: Path, keys: dict[str, Any], template: bool
) -> None:
    plain = check(task(tmp_path, "p", CHOICE))["p"].scored_tokens
    found = check(task(tmp_path, "t", CHOICE, **keys), apply_chat_template=template)["t"]
    assert found.scored_tokens > plain


def test_metrics_that_cannot_be_compared_are_refused(check: Check, tmp_path: Path) -> None:
    body = {
        **ROLLING,
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "byte_perplexity"}],
    }
    with pytest.raises(TaskError, match=r"of byte_perplexity, which t give, none can be compared"):
        check(task(tmp_path, "t", body))
    assert check(task(tmp_path, "u", body), choice_task(tmp_path)).keys() == {"u", "tiny_choice"}


def test_custom_data_gets_the_metadata(check: Check, tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text(
        "import datasets\n"
        "def data(words, **_):\n"
        "    rows = [{'question': 'a b ' * words, 'choices': ['x']}]\n"
        "    return datasets.DatasetDict({'test': datasets.Dataset.from_list(rows)})\n"
    )
    keys = {"dataset_path": None, "dataset_kwargs": None, "metadata": {"words": 50}}
    path = task(tmp_path, "t", GENERATE, "custom_dataset: !function made.data\n", **keys)
    assert check(path)["t"].prompt_tokens >= 100
