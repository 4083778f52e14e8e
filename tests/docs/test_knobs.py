"""docs/knobs.md has every setting once, with its real default, limits and effect on outputs."""

import json
import re
import typing
from pathlib import Path

import pytest

from engine.config.choices import choices_of
from engine.config.exactness import sensitivity
from engine.config.ranges import RANGES
from engine.config.settings import EngineConfig, config_paths
from tuner.folders import SOURCE
from tuner.search.space import BITS, CACHE, COUNT, DEPTH

TEXT = (SOURCE / "docs" / "knobs.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")]
        for line in TEXT.splitlines() if line.startswith("| `")]  # fmt: skip
SETTINGS = {row[0].strip("`"): row[1:] for row in ROWS if ".options." not in row[0]}
OPTIONS = {row[0].strip("`") for row in ROWS if ".options." in row[0]}
DEFAULTS = EngineConfig().flat()


def hint(path: str) -> typing.Any:
    section, _, name = path.partition(".")
    return typing.get_type_hints(type(getattr(EngineConfig(), section)), include_extras=True)[name]


def range_text(path: str) -> str:
    low, high = (int(end) if float(end).is_integer() else end for end in RANGES[path])
    return f"{low} or more" if high >= 1 << 62 else f"{low} to {high}"


def test_every_setting_has_one_row_and_no_row_is_stale():
    assert sorted(SETTINGS) == sorted(config_paths())
    assert len(ROWS) == len(SETTINGS) + len(OPTIONS)


@pytest.mark.parametrize("path", config_paths())
def test_the_default_is_the_codes(path: str):
    default = DEFAULTS[path]
    text = default if isinstance(default, str) else json.dumps(default)
    assert SETTINGS[path][0] == f"`{text}`"


@pytest.mark.parametrize("path", config_paths())
def test_what_is_allowed_is_what_the_code_allows(path: str):
    allowed = SETTINGS[path][1]
    if choices_of(hint(path)):
        named = re.findall(r"`([^`]+)`", allowed)
        extra = ["prequantized"] if path == "precision.bits" else []
        assert named == [*map(str, choices_of(hint(path))), *extra]
    elif hint(path) is bool:
        assert allowed == "`true`, `false`"
    if path in RANGES:
        assert allowed.split(",")[0] == range_text(path)


@pytest.mark.parametrize("path", config_paths())
def test_what_it_does_to_outputs_is_what_the_code_says(path: str):
    assert SETTINGS[path][2] == sensitivity(path)


@pytest.mark.parametrize("path", config_paths())
def test_a_meaning_is_given(path: str):
    assert len(SETTINGS[path][3].split()) >= 3


def test_every_option_that_the_engine_reads_has_a_row():
    source = "".join(file.read_text(encoding="utf-8") for file in (SOURCE / "engine").rglob("*.py"))
    section = r"\b(cache|prefetch|precision|placement)\.options\."
    named = {f"{one}.options.{name}" for one, name in re.findall(section + "([a-z_0-9]+)", source)}
    assert {name for name in named if not name.endswith(".get")} <= OPTIONS
    read = re.findall(section + r"get\(\"([a-z_]+)\"", source)
    assert {f"{section}.options.{name}" for section, name in read} <= OPTIONS


@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_no_option_is_stale(option: str):
    name = option.rpartition(".")[2]
    files = Path(SOURCE / "engine").rglob("*.py")
    assert any(re.search(rf"\b{name}\b", file.read_text(encoding="utf-8")) for file in files)


def test_the_four_that_a_study_searches_are_named():
    first = TEXT.split("## ")[0]
    assert all(f"`{path}`" in first for path in (CACHE, DEPTH, BITS, COUNT))
