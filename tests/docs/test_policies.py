"""docs/policies.md names every preset, every mechanism and every knob that a preset turns."""

import re
from pathlib import Path

import pytest

from engine import types
from engine.config.choices import choices_of
from engine.config.exactness import ON_MISS, sensitivity
from engine.config.settings import EngineConfig
from tuner.bench.ablation import MECHANISMS
from tuner.bench.report.tables import DERIVED
from tuner.definition.policies import load_policy, policy_names

TEXT = (Path(__file__).parents[2] / "docs" / "policies.md").read_text(encoding="utf-8")
PRESETS = TEXT.split("## Presets")[1].split("## ")[0].splitlines()
KINDS = ("Eviction", "Predictor", "Allocation", "Scope", "Queue", "Order", "Placement",
         "Precision", "Plan")  # fmt: skip
MECHANISM_NAMES = {
    name for kind in KINDS for name in choices_of(getattr(types, f"{kind}Name"))
}  # fmt: skip


@pytest.mark.parametrize("name", policy_names())
def test_every_preset_has_a_row_with_its_paper_and_what_it_does_to_outputs(name: str):
    (row,) = [line for line in PRESETS if line.startswith(f"| `{name}` | ")]
    policy = load_policy(name)
    for number in re.findall(r"\d{4}\.\d{5}", policy.paper or ""):
        assert number in row
    scheme = EngineConfig().overlay(policy.engine).precision.scheme
    plain = EngineConfig().flat()
    rounds = any(
        sensitivity(path) == "rounding" and value != plain.get(path)
        for path, value in policy.engine.items()
    )
    outputs = "lossy" if scheme in ON_MISS else "rounding" if rounds else "exact"
    assert row.endswith(f"| {outputs} |")


@pytest.mark.parametrize("name", sorted(MECHANISM_NAMES))
def test_every_mechanism_is_described(name: str):
    assert f"`{name}`" in TEXT


@pytest.mark.parametrize("name", policy_names())
def test_every_knob_of_a_preset_is_explained(name: str):
    for path in load_policy(name).engine:
        assert f"`{path}`" in TEXT or f"`{path}:" in TEXT


@pytest.mark.parametrize(
    "name", [*MECHANISMS, *DERIVED, "policy_ratio", "overlap_ratio", "bandwidth_efficiency"]
)
def test_what_the_report_shows_is_explained(name: str):
    assert f"`{name}`" in TEXT
