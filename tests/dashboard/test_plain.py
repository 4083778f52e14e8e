"""Names are text, not Markdown."""

import sqlite3
from pathlib import Path

import pytest

from dashboard.plain import plain
from tests.dashboard.conftest import Opened

PICTURE = "![x](http://127.0.0.1:9/x.png) <b> :red[a] $x$ `c` | # *d* _e_"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("![x](http://a)", r"\!\[x\]\(http\:\/\/a\)"),
        ("a\n\n# b", r"a \# b"),
        ("Qwen3 30B é", "Qwen3 30B é"),
    ],
)
def test_markup_is_escaped(text: str, expected: str):
    assert plain(text) == expected


def rename(url: str, study: str) -> None:
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE study SET name = ?", (study,))
    connection.close()


def test_a_studys_name_is_shown_as_it_is(opened: Opened, own_storage: str, tmp_path: Path):
    rename(own_storage, PICTURE)
    app = opened("studies", own_storage)
    assert [one.value for one in app.subheader] == [plain(PICTURE)]
    missing = opened("studies", f"sqlite:///{tmp_path / '![x](http://a)'}")
    assert [one.value for one in missing.error if "![x](http://a)" in one.value] == []
    assert "\\!\\[x\\]" in missing.error[0].value
