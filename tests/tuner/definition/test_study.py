"""Definitions: options over a file, and errors that name the nearest key."""

from pathlib import Path

import pytest

from tests.fakes.study import BUDGET_BYTES, write_definition
from tuner.definition.study import load_definition
from tuner.errors import DefinitionError


def test_options_lie_over_the_file(tmp_path: Path):
    path = write_definition(tmp_path)
    found = load_definition(path, {"trials": 99, "budget": {"vram_bytes": None}, "seed": None})
    assert found.trials == 99
    assert found.budget.vram_bytes == BUDGET_BYTES


def test_paths_in_a_file_are_beside_it(tmp_path: Path):
    found = load_definition(write_definition(tmp_path), {})
    assert found.load_workload().name == "tiny"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: m\ntrails: 3\n", "no key 'trails'; the nearest is 'trials'"),
        ("model: m\nbudget: {vrm_bytes: 3}\n", "nearest is 'vram_bytes'"),
        ("model: m\nbudget: {vram_bytes: 8GBB}\n", "'8GBB' is not a size"),
        ("model: m\nspace: {cache.expert_byte: [1]}\n", "nearest is 'cache.expert_bytes'"),
        ("model: m\nengine: {precision.bits: 5}\n", "allowed are 16, 8, 4, 3, 2"),
        ("model: m\nspace: {precision.bits: []}\n", "no values"),
        ("model: m\nobjectives: [speed]\n", "output_tps"),
        ("model: m\ntrials: none\n", "trials = 'none'"),
        ("model: [\n", "line 2 is not safe YAML"),
        ("model: !!python/object:os.system {}\n", "not safe YAML"),
        ("- a\n", "must hold keys and values"),
        ("trials: 3\n", "no model was given"),
        ("schema: expertune/v1\nmodel: {id: m}\n", "is a deployment"),
        ("model: m\nvram: 8GB\n", "`budget: {vram_bytes: ...}`"),
        ("model: m\nmin_quality: 1\n", "`constraints: {min_quality: ...}`"),
        ("model: m\nbudget: 8GB\n", "budget = '8GB' must be a mapping with keys of curve,"),
        ("model: m\nbudget:\n\tvram_bytes: 8GB\n", "line 3 is not safe YAML"),
        ("model: m\nbudget:\n\tvram_bytes: 8GB\n", "indent with spaces, not tabs"),
        ("model: m\nbudget: {vram_bytes: yes}\n", "a number is wanted, not yes or no"),
        ("model: m\ntrials: true\n", "a number is wanted, not yes or no"),
        ("model: m\nbudget: {ram_bytes: -8}\n", "greater than or equal to 0"),
        ("model: m\nconstraints: {max_ttft_ms: .inf}\n", "a finite number"),
        ("model: m\ntimeout_s: 1:30\n", "'1:30' is no duration"),  # yaml/pyyaml#395
        ("model: m\nseed: -1\n", "seed = -1"),  # numpy/numpy#17079
        ("model: m\nseed: 4294967296\n", "seed = 4294967296"),
        ("model: m\ndevice: ''\n", "device = ''"),
        ('model: m\nname: "a\\nb"\n', "the study's name 'a\\nb'"),
        (f"model: m\nname: {'a' * 300}\n", "at most 100"),
        ("model: m\nrepeats: {min: 5, max: 3}\n", "min is at most max"),
        ("model: m\nspace: {precision.bits: [4, 4]}\n", "has a value twice"),
        ("model: m\nengine: {precision: {bits: 4}}\n", "write `precision.bits: ...`"),
        ("model: m\nengine: {device.name: cuda:0}\n", "name it as `device`"),
        ("model: m\nengine: {precision.bits: }\n", "'precision.bits' has no value"),
        (
            "model: m\nengine: {precision.bits: 4}\nspace: {precision.bits: [4, 8]}\n",
            "precision.bits: fixed by `engine` and searched by `space`",
        ),
    ],
)
def test_what_cannot_be_read_is_said_in_one_sentence(tmp_path: Path, text: str, says: str):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(DefinitionError) as caught:
        load_definition(path, {})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_is_what_was_written_and_a_file_name_holds_no_folder(tmp_path: Path):
    # yaml/pyyaml#107: 007 and 2026-11-29 are texts to people, an octal number and a date to YAML
    path = tmp_path / "study.yaml"
    for name in ("2026-11-29", "007", "12:30", "größe/1 😀"):
        path.write_text(f"model: m\nname: {name}\ntrials: 010\ntimeout_s: 1:30:00\n")
        found = load_definition(path, {})
        assert (found.name, found.trials, found.timeout_s) == (name, 10, 5400)
        assert found.output_path.name == str(found.output_path)


def test_the_digest_ignores_how_long_to_search_but_not_what_for(tmp_path: Path):
    path = write_definition(tmp_path)
    digest = load_definition(path, {}).search_digest()
    assert load_definition(path, {"trials": 50, "seed": 4}).search_digest() == digest
    assert load_definition(path, {"budget": {"vram_bytes": 1}}).search_digest() != digest
