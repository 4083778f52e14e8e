"""A report as Markdown and as one HTML page that needs no other host."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.tuner.bench.report.made import make_document, make_row, timed
from tuner.bench.report.tables import tables_of
from tuner.bench.report.write import write_report

VOID = {"meta", "link", "br", "img", "input", "hr"}
HOSTILE = "</script><b>|x"


class Page(HTMLParser):
    """Fails where tags do not nest; keeps tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)


@pytest.fixture
def document():
    reads = {"oracle_bytes_per_token": [3e6] * 2, "read_bytes_per_s": [1e9] * 2}
    notes = {"inactive": ["placement: inactive"], "notes": ["n1"], "lossy": True, "plan": "p1"}
    fractions = [{"cache.expert_bytes": fraction} for fraction in ("10%", "75%")]
    return make_document(
        make_row("lru", resident_fraction=[1.0], **timed(wall=20, busy=8)),
        make_row("scratchpipe", resident_fraction=[0.5], **timed(wall=10, busy=8), **reads),
        make_row("scratchpipe", without="evict", **timed(wall=15, busy=8)),
        make_row("promoe", environment=notes, **timed(wall=16, busy=8), **reads),
        *(make_row("lru", settings=fraction, **timed(wall=30, busy=8)) for fraction in fractions),
        make_row(None, name=HOSTILE, **timed(wall=16, busy=8)),
        make_row(None, name="broken", error="it broke"),
    )


def test_a_document_has_the_derived_figures(document):
    assert set(document) == {
        "interrupted", "rows", "derived", "ablation", "published", "machine", "provenance",
    }  # fmt: skip
    assert [entry["row"] for entry in document["derived"]] == [r["name"] for r in document["rows"]]
    assert document["ablation"][0]["ratios"]["decode_tps"]["value"] == pytest.approx(1.5)
    named = {entry["row"] for entry in document["published"]}
    assert named == {"promoe"}


def test_tables_show_all_that_is_there(document):
    tables = {table.title: table for table in tables_of(document)}
    assert set(tables) == {
        "Rows", "Time of a decoded token (ms)", "decode_tps against cache fraction", "Efficiency",
        "Ablation", "Published beside measured", "Notes",
    }  # fmt: skip
    for table in tables.values():
        assert {len(row) for row in table.rows} == {len(table.columns)}
    assert [row[0] for row in tables["decode_tps against cache fraction"].rows] == ["10 %", "75 %"]
    notes = tables["Notes"].rows
    assert [note for name, note in notes if name == "promoe"] == [
        "placement: inactive", "n1", notes[2][1], "plan: p1",
    ]  # fmt: skip
    assert "lossy" in notes[2][1]
    assert ("broken", "failed: it broke") in notes
    verdicts = [row[5] for row in tables["Published beside measured"].rows if "lru" in row[1]]
    assert any(verdict.startswith("not reached; the bound is 2.5") for verdict in verdicts)


def test_a_sparse_bench_has_few_tables():
    plain = make_document(make_row("lru", output_tps=[3.0]))
    assert [table.title for table in tables_of(plain)] == ["Rows"]


def test_markdown_is_one_file_of_even_tables(document, tmp_path: Path):
    write_report(tmp_path / "r.md", document)
    text = (tmp_path / "r.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["r.md"]
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        lines = block.strip().split("\n")
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert "## Ablation" in text
    assert "- Machine:" in text


def test_html_is_well_formed_and_loads_nothing(document, tmp_path: Path):
    write_report(tmp_path / "r.html", document)
    text = (tmp_path / "r.html").read_text()
    page = Page(text)
    words = " ".join(page.words)
    for heading in ("Published beside measured", "Ablation", "Provenance", HOSTILE):
        assert heading in words
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "img")
        assert not {"src", "href"} & set(attributes)
    scripts = [tag for tag, _ in page.tags if tag == "script"]
    assert text.count("plotly.js v") == 1
    assert text.count("Plotly.newPlot(") >= 2
    assert len(scripts) >= 3
    assert "prefers-color-scheme: dark" in text


def test_html_without_figures_carries_no_script(tmp_path: Path):
    write_report(tmp_path / "r.html", make_document(make_row("lru", output_tps=[3.0])))
    text = (tmp_path / "r.html").read_text()
    assert len(text) < 10_000
    assert [tag for tag, _ in Page(text).tags if tag == "script"] == []
