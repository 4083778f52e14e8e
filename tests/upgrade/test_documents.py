"""Deployments, definitions and JSON of every version: read as they were, no key has gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.fakes.study import tune_in
from tests.tuner.conftest import Tune
from tests.upgrade.folders import fixture, versions_now, versions_of
from tests.upgrade.make import DOCUMENTS, keys_of, make_study
from tuner.deployment.document import dump_deployment, load_deployment, parse_deployment
from tuner.errors import DeploymentError

NOW = versions_now({})


@pytest.mark.parametrize("version", versions_of("deployment"))
def test_a_deployment_means_what_it_meant(version: str, tune: Tune) -> None:
    (file,) = fixture("deployment", version).iterdir()
    if version != NOW["deployment"]:
        with pytest.raises(DeploymentError, match=r"this program reads|made again by a study"):
            load_deployment(file)
        return
    found = load_deployment(file)
    assert parse_deployment(dump_deployment(found)) == found
    written = file.read_text(encoding="utf-8")
    assert str(found.engine["cache"]["expert_bytes"]) in written
    assert tune("compare", str(file), str(file)).code == 0


@pytest.mark.parametrize("version", versions_of("definition"))
def test_a_definition_still_runs(version: str, tune: Tune, folder: Path) -> None:
    for path in fixture("definition", version).iterdir():
        shutil.copyfile(path, folder / path.name)
    done = tune("--definition", "study.yaml", "--dry-run", "--json")
    assert done.code == 0, done.err
    assert done.document["plan"]["trials"] == 6


def test_no_key_of_a_document_has_gone(tmp_path: Path) -> None:
    # docs/json.md: "A key that goes, or changes its meaning, makes it v2"
    make_study(tmp_path / "study")
    for name, words in DOCUMENTS.items():
        kept = (fixture("json", NOW["json"]) / f"{name}.txt").read_text(encoding="utf-8")
        made = json.loads(tune_in(tmp_path / "study", *words, "--json"))
        assert set(kept.splitlines()) - set(keys_of(made)) == set(), name


def test_no_key_of_a_line_of_progress_has_gone(tmp_path: Path) -> None:
    make_study(tmp_path / "study")
    kept = fixture("progress", NOW["progress"]) / "progress.jsonl"
    gone = lines_of(kept) - lines_of(tmp_path / "study" / "progress.jsonl")
    assert gone == set()


def lines_of(file: Path) -> set[tuple[str, str]]:
    """The keys of each kind of event."""
    events = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {(one["event"], key) for one in events for key in one}
