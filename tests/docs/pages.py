"""The pages that users read, and the commands in them: whole ones in blocks, mentions in text."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

from tuner.folders import SOURCE

# docs/lab/ and docs/adr/ are history: what was typed then must stay as it was typed.
PAGES = tuple(sorted([SOURCE / "README.md", *(SOURCE / "docs").glob("*.md")]))
SHELLS = ("", "bash", "sh", "console")
_SEPARATORS = {"|", "||", "&&", ";", "&", ">", ">>", "<", "(", ")"}


@dataclass(frozen=True)
class Found:
    """A command on a page. words: without `tune` itself."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(language, text) of each block of code; indented ones have no language."""
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            yield token.info.strip(), token.content


def shell_lines(page: Path) -> Iterator[list[str]]:
    """Words of each command in blocks for a shell, comments left out, pipelines taken apart."""
    for language, text in blocks(page):
        if language not in SHELLS:
            continue
        for line in text.replace("\\\n", " ").splitlines():
            plain = re.sub(r"^\s*\$\s+", "", line)
            if language == "console" and plain == line:
                continue  # what the command printed
            yield from _simple_commands(plain)


def commands(page: Path) -> Iterator[Found]:
    """Every `tune ...` that stands in a block."""
    for words in shell_lines(page):
        if words and Path(words[0]).name == "tune":
            yield Found(page.name, tuple(words[1:]))


def mentions(page: Path) -> Iterator[Found]:
    """Every `tune ...` that stands in a sentence; ellipses are left out."""
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8")):
        for child in token.children or []:
            if child.type == "code_inline" and re.match(r"(\.venv/bin/)?tune( |$)", child.content):
                words = [word for word in child.content.split()[1:] if word != "..."]
                yield Found(page.name, tuple(words))


def _simple_commands(line: str) -> Iterator[list[str]]:
    try:
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
        lexer.whitespace_split = True
        words = list(lexer)
    except ValueError:  # an open quote: not a shell's line
        return
    found: list[str] = []
    for word in words:
        if word in _SEPARATORS:
            yield found
            found = []
        else:
            found.append(word)
    yield found
