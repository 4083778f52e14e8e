"""docs/exports.md has a row for each setting that a format carries, and names its option."""

import re

import pytest

from tuner.deployment.formats import llama_cpp, vllm
from tuner.deployment.formats.registry import FORMATS
from tuner.folders import SOURCE

TEXT = (SOURCE / "docs" / "exports.md").read_text(encoding="utf-8")
CARRIED = {"llama.cpp": llama_cpp.CARRIED, "vLLM": vllm.CARRIED}


def rows(section: str) -> dict[str, str]:
    """setting -> the rest of its row."""
    text = TEXT.split(f"## {section}\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `([a-z_.]+)` \| (.*) \|$", text, re.MULTILINE))


@pytest.mark.parametrize("section", CARRIED)
def test_every_carried_setting_has_a_row_and_no_row_is_stale(section: str):
    assert set(rows(section)) == set(CARRIED[section])


@pytest.mark.parametrize(
    ("section", "path", "option"),
    [(s, path, option) for s, carried in CARRIED.items() for path, option in carried.items()],
)
def test_a_row_names_the_option(section: str, path: str, option: str):
    assert f"{option}" in rows(section)[path]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_shown(name: str):
    assert name == "yaml" or f"--format {name} " in TEXT
