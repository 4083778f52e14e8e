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
    ],
)
def test_what_cannot_be_read_is_said_in_one_sentence(tmp_path: Path, text: str, says: str):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(DefinitionError) as caught:
        load_definition(path, {})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_digest_ignores_how_long_to_search_but_not_what_for(tmp_path: Path):
    path = write_definition(tmp_path)
    digest = load_definition(path, {}).search_digest()
    assert load_definition(path, {"trials": 50, "seed": 4}).search_digest() == digest
    assert load_definition(path, {"budget": {"vram_bytes": 1}}).search_digest() != digest
