"""Names and texts of others split no header, forge no line of a log, reach no terminal raw."""

from __future__ import annotations

import io
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from rich.console import Console

from engine.inputs.visible import EntryFormatter, visible
from engine.serve.openai.errors import add_handlers
from tests.security.conftest import Listening
from tests.security.test_cross_site import BODIES
from tuner.__main__ import run
from tuner.cli import output
from tuner.service.problems import explain_problems
from tuner.study.displays import Lines, LiveView

EVIL = (
    "a\r\nX-Evil: 1\nERROR tuner: forged\x1b[31m\x9b2J\x00\x7f\x85\u2028\u2029\u202e\u200b[red][/x]"
)
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028-\u202e]")
STYLE = "%(levelname)s %(name)s: %(message)s"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What a terminal would get of all logs."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(EntryFormatter(STYLE))
    logging.getLogger().addHandler(handler)
    yield stream
    logging.getLogger().removeHandler(handler)


def entries(text: str) -> list[str]:
    """The lines that look like ours, of a text that holds nothing raw."""
    assert not RAW.search(text)
    return re.findall(r"^(?:[A-Z]+ [\w.]+|tune): .*", text, re.MULTILINE)


@pytest.mark.parametrize(
    "path", ["/v1/models/{}", "/v1/studies/{}", "/{}", "/v1/configs/best?model={}"]
)
@pytest.mark.parametrize("twice", [False, True])
def test_a_path_splits_no_header_and_forges_no_line(
    server: Listening, path: str, twice: bool, lines: io.StringIO
) -> None:
    encoded = quote(EVIL, safe="")
    asked = path.format(quote(encoded, safe="") if twice else encoded)
    headers = {"User-Agent": "a b\tc\u00e9".encode("latin-1"), "X-Request-Id": quote(EVIL)}
    for method in ("GET", "POST", "DELETE", "BREW"):
        answer = httpx.request(method, f"{server.url}{asked}", headers=headers)
        assert 400 <= answer.status_code < 500
        assert "x-evil" not in answer.headers
        assert not RAW.search("".join(f"{k}{v}" for k, v in answer.headers.items()))
        assert not RAW.search(answer.text)  # JSON escapes them
    assert len(entries(lines.getvalue())) <= 4


def test_nor_do_names_in_a_body(server: Listening, lines: io.StringIO) -> None:
    path, body = BODIES[server.name]
    for name in ("model", "name", "user", EVIL):
        answer = httpx.post(f"{server.url}{path}", json={**body, name: EVIL})
        assert answer.status_code < 500
        assert "x-evil" not in answer.headers
        assert answer.status_code == 200 or not RAW.search(answer.text)
    assert entries(lines.getvalue()) == []


@pytest.mark.parametrize("explain", [add_handlers, explain_problems], ids=["deploy", "service"])
def test_a_request_that_fails_is_one_entry_of_the_log(explain: Any, lines: io.StringIO) -> None:
    app = FastAPI()
    explain(app)

    @app.get("/{path:path}")
    def fail(path: str) -> None:
        raise RuntimeError(EVIL)

    on_one_line = EVIL.replace("\n", " ")  # no route has a line feed
    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.get(f"/{quote(on_one_line, safe='')}").status_code == 500
    (entry,) = entries(lines.getvalue())
    assert entry.startswith("ERROR ")


def test_a_record_is_one_entry_whatever_stands_in_it() -> None:
    try:
        raise RuntimeError(EVIL)
    except RuntimeError:
        made = logging.LogRecord("a.b", 30, "f", 1, "%s", (EVIL,), sys.exc_info(), None)
    text = EntryFormatter(STYLE).format(made)
    assert entries(text) == [text.split("\n")[0]]
    assert text.startswith("WARNING a.b: a\\r\n    X-Evil: 1\n    ERROR tuner: forged\\x1b[31m")
    assert all(line.startswith("    ") for line in text.split("\n")[1:])


def test_what_a_terminal_shows_stays() -> None:
    plain = "a\tb\nQwen3 é 日本 \u05d0 \U0001f469\u200d\U0001f4bb \xa0 …"
    assert visible(plain) == plain
    assert visible("\ud800") == "\\ud800"


def test_printed_texts_reach_no_terminal_raw(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_text(EVIL)
    output.print_note(EVIL)
    output.print_table(EVIL, [f"#{EVIL}", "b"], [[EVIL, None], ["[/red]", 1.5]])
    output.print_json({"name": EVIL})
    printed = capsys.readouterr()
    for text in (printed.out, printed.err):
        assert not RAW.search(text)
        assert "\\x1b[31m" in text or "\\u001b[31m" in text
    assert "[/red]" in printed.out  # no markup
    assert entries(printed.err) == []


def test_what_was_made_is_raw_in_files_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output.print_made(EVIL, end="")
    assert capsys.readouterr().out == EVIL
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    output.print_made(EVIL)
    assert not RAW.search(capsys.readouterr().out)


@pytest.mark.parametrize("kind", [Lines, LiveView])
def test_notes_of_a_study_are_lines_of_their_own(kind: type[Lines] | type[LiveView]) -> None:
    stream = io.StringIO()
    kind(Console(file=stream, width=500)).note(EVIL)
    assert entries(stream.getvalue()) == []
    assert "[red][/x]" in stream.getvalue()


DEFINITION = "model: m\nbudget: {{vram_bytes: 1000000}}\n"
FILES = {
    "name": DEFINITION + "name: {0}\n",
    "sampler": DEFINITION + "sampler: {0}\n",
    "key": DEFINITION + "{0}: 1\n",
    "objective": DEFINITION + "objectives: [{0}]\n",
    "workload": DEFINITION + "workload: {0}\n",
    "setting": DEFINITION + "space: {{{0}: [1]}}\n",
    "no YAML": "a: [{0}\n",
    "a list": "- {0}\n",
}


@pytest.mark.parametrize("kind", FILES)
def test_a_studys_names_forge_no_error(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    escaped = '"' + "".join(f"\\u{ord(c):04x}" for c in EVIL) + '"'
    (tmp_path / "study.yaml").write_text(FILES[kind].format(escaped), encoding="utf-8")
    (tmp_path / "deployment.yaml").write_text(FILES[kind].format(escaped), encoding="utf-8")
    for words in (("--definition", "study.yaml", "--dry-run"), ("deploy", "deployment.yaml")):
        assert run(words) in (1, 2, 3)
        printed = capsys.readouterr()
        assert not RAW.search(printed.out)
        assert len(entries(printed.err)) == 1


def test_an_argument_forges_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name = EVIL.replace("\x00", "")
    for words in (("show", name), ("deploy", name), (f"--{name}",), ("export", name),
                  ("pack", f"--{name}"), ("studies", "--storage", name)):  # fmt: skip
        assert run(words) != 0
        assert len(entries(capsys.readouterr().err)) == 1, words
