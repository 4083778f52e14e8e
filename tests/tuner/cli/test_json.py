"""docs/json.md says what commands print: every key has a row, and no row is stale."""

import re
import socket
from pathlib import Path

import pytest

from tests.fakes.study import BUDGET_BYTES
from tests.tuner.conftest import Tune
from tuner.cli.output import JSON_SCHEMA
from tuner.folders import SOURCE

TEXT = (SOURCE / "docs" / "json.md").read_text(encoding="utf-8")
FILE = "expertune-small.yaml"
SMALL = ("--model", "m", "--vram", str(BUDGET_BYTES), "--workload", "workload.yaml")
ROW = re.compile(r"^\| (\*?)`(\w+)`\*? \|", re.MULTILINE)
RUN = [
    ("tune studies", ("studies",)),
    ("tune show", ("show", "small")),
    ("tune export", ("export", "small")),
    ("tune compare", ("compare", FILE, FILE)),
    ("tune verify", ("verify", FILE)),
    ("tune run", ("run", FILE, "--prompt", "a")),
    ("tune deploy", ("deploy", FILE, "--port", "0")),
    ("tune bench", ("bench", *SMALL)),
    ("tune plan", ("plan", "--model", "m", "--vram", str(BUDGET_BYTES))),
    ("tune doctor", ("doctor",)),
    ("tune doctor", ("doctor", "--store")),
    ("tune doctor", ("doctor", "--model", "m", "--device", "cpu")),
    ("tune profile", ("profile", "--model", "m")),
    ("tune profile", ("profile", "--model", "m", "--no-timings")),
    ("tune pack", ("pack", "--model", "m", "--bits", "4")),
    ("tune pack", ("pack", "--list")),
    ("tune trace", ("trace", *SMALL, "-o", "t.npz")),
    ("tune --dry-run", ("--definition", "study.yaml", "--study", "new", "--dry-run")),
    ("tune", ("--definition", "study.yaml", "--study", "again")),
    ("tune service token add", ("service", "token", "add", "ci")),
    ("tune service token list", ("service", "token", "list")),
]


def documented(command: str) -> dict[str, bool]:
    """Key -> whether it is always there, of the section of a command."""
    found = {}
    for section in TEXT.split("\n## ")[1:]:
        heading, _, body = section.partition("\n")
        if f"`{command}`" in heading:
            found.update({name: not star for star, name in ROW.findall(body)})
    return found


@pytest.mark.parametrize(("command", "words"), RUN, ids=lambda value: " ".join(value))
def test_every_key_has_a_row_and_no_row_is_stale(
    tune: Tune,
    study: Path,
    command: str,
    words: tuple[str, ...],
):
    done = tune(*words, "--json")
    assert done.code == 0, done.err
    document = done.document
    assert document.pop("schema") == JSON_SCHEMA
    rows = documented(command)
    assert set(document) <= set(rows)
    assert {name for name, always in rows.items() if always} <= set(document)


def test_every_case_of_a_key_is_seen():
    seen = {command for command, _ in RUN}
    headings = re.findall(r"^## `(tune[^`]*)`", TEXT, re.MULTILINE)
    not_run = {"tune replay", "tune service", "tune service token revoke"}
    assert set(headings) - seen == {*not_run, "tune train predictor", "tune train eviction"}


def test_an_error_is_a_document_too(tune: Tune):
    document = tune("show", "nothing", "--json").document
    assert set(document) == {"schema", "error"}
    assert set(document["error"]) == {"message", "exit_code", "smallest_bytes"}


def test_a_busy_port_is_said_before_the_canary(tune: Tune, study: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = tune("deploy", FILE, "--port", port)
    assert done.code == 1
    assert f"127.0.0.1:{port} cannot be listened on" in done.err
    assert "canary" not in done.err
    assert done.out == ""


@pytest.mark.parametrize("command", ["deploy", "verify", "bench"])
def test_a_study_where_a_file_is_wanted_is_told_to_be_exported(
    tune: Tune,
    study: Path,
    command: str,
):
    done = tune(command, "small")
    assert done.code == 2
    assert "`tune export small -o small.yaml`" in done.err
