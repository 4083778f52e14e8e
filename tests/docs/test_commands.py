"""Every command in README.md and docs/ is one that this release takes; the quick ones are run."""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from engine.errors import EngineError
from tests.docs.pages import PAGES, Found, commands, mentions, shell_lines
from tuner.__main__ import run
from tuner.cli.app import app
from tuner.cli.options import read_settings
from tuner.definition.policies import load_policy
from tuner.deployment.export import check_format
from tuner.errors import TunerError
from tuner.folders import SOURCE

COMMANDS = [found for page in PAGES for found in commands(page)]
MENTIONS = [found for page in PAGES for found in mentions(page)]
OURS = ("studies/", "scripts/", "docs/", "tests/")
# What needs no study, no download and only seconds.
QUICK = ("--help", "doctor --no-parity", "plan --model demo")


def parse(words: tuple[str, ...]) -> dict[str, Any]:
    """The values that the command line gives, by name. Raises TyperException as `tune` would."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("tune", list(words))
    values = dict(context.params)
    rest = [*context._protected_args, *context.args]
    while rest and hasattr(command, "resolve_command"):
        name, command, arguments = command.resolve_command(context, rest)
        context = command.make_context(name, arguments, parent=context)
        values = dict(context.params)
        rest = [*context._protected_args, *context.args]
    return values


@pytest.mark.parametrize("found", COMMANDS, ids=str)
def test_a_command_is_taken(found: Found):
    check(found.words)


@pytest.mark.parametrize(
    "line",
    ["bench --polices lru", "export", "export s --format gguf", "bench --set cache.size=1",
     "bench --policies lruu", "benchh", "service token give x", "plan --count many"],
)  # fmt: skip
def test_a_command_that_is_wrong_is_refused(line: str):
    with pytest.raises((typer.TyperException, TunerError, EngineError)):
        check(tuple(line.split()))


def check(words: tuple[str, ...]) -> None:
    """Raises what `tune` would raise for these words, short of doing anything."""
    with contextlib.suppress(typer.Exit):  # --help
        values = parse(words)
        check_values(values)


def check_values(values: dict[str, Any]) -> None:
    """Settings, formats and policies are read where the command runs, not when it is parsed."""
    read_settings(list(values.get("settings") or []))
    check_format(values.get("file_format") or "yaml")
    for name in (values.get("policies") or "").split(","):
        if name:
            load_policy(name)


@pytest.mark.parametrize("found", MENTIONS, ids=str)
def test_a_mentioned_command_and_its_options_exist(found: Found):
    command: Any = typer.main.get_command(app)
    words = list(found.words)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    known = {name for parameter in command.params for name in parameter.opts}
    known |= {name for parameter in command.params for name in parameter.secondary_opts}
    options = {re.split("[=,]", word)[0] for word in words if word.startswith("-")}
    assert options <= known | {"--help"}
    assert not words or not re.fullmatch(r"[a-z]+", words[0]), f"there is no tune {words[0]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_commands_name_in_the_source_tree_is_there(page: Path):
    targets = set(re.findall(r"^([a-z-]+):", (SOURCE / "Makefile").read_text(), re.MULTILINE))
    for words in shell_lines(page):
        for word in words:
            if word.startswith(OURS):
                assert (SOURCE / word).exists(), f"{page.name}: {word}"
        if words and words[0] == "make":
            assert words[1] in targets, f"{page.name}: make {words[1]}"


def test_every_page_is_linked_from_the_front_page():
    text = (SOURCE / "README.md").read_text(encoding="utf-8")
    for page in PAGES:
        assert page.parent == SOURCE or f"](docs/{page.name})" in text, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    text = re.sub(r"`[^`]*`", "", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def quick() -> list[Found]:
    """The commands that are run, each once."""
    chosen = {f.words: f for f in COMMANDS if " ".join(f.words).startswith(QUICK)}
    return list(chosen.values())


@pytest.mark.parametrize("found", quick(), ids=str)
def test_a_quick_command_does_what_it_says(
    found: Found,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("EXPERTUNE_ENGINE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert run(found.words) == 0
    out = capsys.readouterr().out
    assert out
    if "--json" in found.words:
        json.loads(out)


def test_some_commands_are_run():
    assert {found.words[0] for found in quick()} >= {"plan", "doctor"}
