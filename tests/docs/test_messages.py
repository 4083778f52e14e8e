"""What messages tell people to do can be done, and docs/troubleshooting.md explains real ones."""

import ast
import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import typer

from engine.types import FailureClass
from tuner.cli.app import app
from tuner.folders import SOURCE

OPTIONS_OF_OTHERS = {
    "--head",
    "--address",
    "--fd",
    "--stride",
}  # of the worker, and of `tune train`


def texts(*patterns: str) -> Iterator[str]:
    """Every text in these files, values in it as `{}`; docstrings are none."""
    for pattern in patterns:
        for file in sorted(SOURCE.glob(pattern)):
            yield from _texts_of(ast.parse(file.read_text(encoding="utf-8")))


def _texts_of(tree: ast.AST) -> Iterator[str]:
    plain = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp | ast.JoinedStr | ast.Constant) and id(node) not in plain:
            yield _text_of(node)


def _text_of(node: ast.AST) -> str:
    """What stands fixed in an expression, `{}` for the rest."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text_of, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text_of(node.left) + _text_of(node.right)
    return "{}"


# Scripts for other programs name their options, and a page's style has names that look like some.
FOREIGN = {*texts("tuner/deployment/formats/*.py"), *texts("tuner/bench/report/page.py")}
SENTENCES = sorted({text for text in texts("engine/**/*.py", "tuner/**/*.py") if " " in text})


def all_options() -> set[str]:
    """Of every command."""

    def walk(command: Any) -> Iterator[str]:
        for parameter in command.params:
            yield from (*parameter.opts, *parameter.secondary_opts)
        for inner in getattr(command, "commands", {}).values():
            yield from walk(inner)

    return {*walk(typer.main.get_command(app)), "--help"}


def test_options_that_sentences_name_exist():
    known = all_options() | OPTIONS_OF_OTHERS
    own = [text for text in SENTENCES if text not in FOREIGN]
    assert len(own) > 400
    for text in own:
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text):
            assert option in known, text


def test_commands_that_sentences_name_exist():
    commands: Any = typer.main.get_command(app)
    for text in SENTENCES:
        for name in re.findall(r"`tune ([a-z]+)", text):
            assert name in commands.commands, text


def test_targets_that_sentences_name_exist():
    targets = set(re.findall(r"^([a-z-]+):", (SOURCE / "Makefile").read_text(), re.MULTILINE))
    for text in SENTENCES:
        for name in re.findall(r"`make ([a-z-]+)`", text):
            assert name in targets, text


def test_scripts_that_sentences_name_exist():
    for text in SENTENCES:
        for name in re.findall(r"scripts/[a-z_]+\.py", text):
            assert (SOURCE / name).is_file(), text


# Troubleshooting

PAGE = (SOURCE / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = [text for _, text in re.findall(r"^- (`+) ?(.+?) ?\1: ", PAGE, re.MULTILINE)]


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_on_the_page_is_one_of_the_programs(message: str):
    """`...` stands for what changes; the rest must stand in one text of the program, in order."""
    parts = [part.strip() for part in message.split("...") if part.strip()]
    pattern = ".*".join(re.escape(part) for part in parts)
    assert any(re.search(pattern, text, re.DOTALL) for text in SENTENCES), message


def test_the_page_has_messages():
    assert len(MESSAGES) >= 40
    assert len(MESSAGES) == len(set(MESSAGES))


def test_every_class_of_failure_is_explained():
    for name in get_args(FailureClass):
        assert f"`{name}`" in PAGE, name
