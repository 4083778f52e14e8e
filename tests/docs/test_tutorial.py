"""docs/tutorial.md: its tables are what the memory equation says, and its study is one."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from engine.config.settings import EngineConfig
from engine.facts.model import ModelFacts
from engine.memory.plan import resolve
from engine.model.facts import describe
from engine.model.loader import load_model
from tests.docs.pages import PAGES, blocks
from tests.docs.shapes import gpt_oss_20b, qwen3_30b_a3b
from tuner.definition.study import load_definition
from tuner.deployment.document import VERSION
from tuner.folders import SOURCE

TEXT = (SOURCE / "docs" / "tutorial.md").read_text(encoding="utf-8")
MODELS: dict[str, Callable[[Path], Path]] = {
    "Qwen3-30B-A3B": qwen3_30b_a3b,
    "gpt-oss-20b": gpt_oss_20b,
}
DEVICES = {"RAM": "cpu", "GPU": "cuda:0"}
PRECISIONS = (16, 8, 4, 3, 2, "prequantized")
PLAIN: dict[str, Any] = {"budget.vram_bytes": "8GB", "kv.max_tokens": 4096}
SMALL = {**PLAIN, "precision.non_expert_bits": 4, "kv.bits": 8, "placement.embeddings": "host"}
STARTS = tuple(f"| {name}" for name in MODELS)
ROWS = [[cell.strip() for cell in line.strip("|").split("|")]
        for line in TEXT.splitlines() if line.startswith(STARTS)]  # fmt: skip
CASES = [(row, PLAIN) for row in ROWS[:4]] + [(row, SMALL) for row in ROWS[4:]]


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelFacts]:
    """Of both models, from shapes alone."""
    found = {}
    for name, write in MODELS.items():
        folder = write(tmp_path_factory.mktemp("models") / name)
        loaded = load_model(folder, torch.bfloat16, trust_remote_code=False, weights=False)
        found[name] = describe(loaded, name, "local")
    return found


@pytest.mark.parametrize(("row", "settings"), CASES)
def test_a_row_says_what_the_memory_equation_says(
    facts: dict[str, ModelFacts], row: list[str], settings: dict[str, Any]
):
    model = facts[row[0]]
    for bits, shown in zip(PRECISIONS, row[2:], strict=True):
        if str(bits) not in model.expert_bytes:
            assert shown == "-"
            continue
        changes = {**settings, "device.name": DEVICES[row[1]], "precision.bits": bits}
        _, plan = resolve(EngineConfig().overlay(changes), model)
        assert shown == f"{plan.resident_fraction(model.moe_layers * model.experts):.0%}"


def test_both_tables_are_whole():
    assert len(ROWS) == 6


def test_its_sizes_are_those_of_the_shapes(facts: dict[str, ModelFacts]):
    qwen, oss = facts["Qwen3-30B-A3B"], facts["gpt-oss-20b"]
    assert f"({(qwen.non_expert_bytes + qwen.expert_bytes['16']) / 1e9:.0f} GB at 16 bits)" in TEXT
    codes = oss.expert_bytes["prequantized"]
    assert f"({(oss.non_expert_bytes + codes) / 1e9:.1f} GB as mxfp4)" in TEXT
    for model in (qwen, oss):
        assert f"{model.non_expert_bytes / 1e9:.1f} GB" in TEXT
        assert f"{model.expert_bytes['4'] / 1e9:.0f} GB for" in TEXT


@pytest.mark.parametrize(
    ("page", "text"),
    [(page.name, text) for page in PAGES for kind, text in blocks(page) if kind == "yaml"],
)
def test_yaml_on_a_page_is_a_study_or_a_part_of_one(tmp_path: Path, page: str, text: str):
    if f"schema: {VERSION}" in text:
        return  # of a deployment, cut short for the eye
    data = yaml.safe_load(text)
    file = tmp_path / "study.yaml"
    file.write_text(re.sub(r"demo/|workloads/", "", yaml.safe_dump({"model": "m", **data})))
    assert load_definition(file, {}).model
