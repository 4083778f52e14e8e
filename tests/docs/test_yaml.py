"""docs/yaml.md has a row for each key of a deployment, and its figures are ones that runs give."""

import re
from collections.abc import Iterator

from pydantic import BaseModel

from tuner.deployment.document import (
    DeployedBudget,
    DeployedModel,
    DeployedQuality,
    DeployedTask,
    DeployedWorkload,
    Deployment,
    MeasuredMetric,
    MeasuredSentinel,
    Neighbour,
    Provenance,
)
from tuner.folders import SOURCE

TEXT = (SOURCE / "docs" / "yaml.md").read_text(encoding="utf-8")
PARTS: dict[str, type[BaseModel]] = {
    "model": DeployedModel,
    "budget": DeployedBudget,
    "workload": DeployedWorkload,
    "measured.METRIC": MeasuredMetric,
    "measured.sentinel": MeasuredSentinel,
    "quality": DeployedQuality,
    "quality.tasks[]": DeployedTask,
    "neighbours[]": Neighbour,
    "provenance": Provenance,
}
WHOLE = {"schema", "engine", "quality", "machine"}  # keys that a row explains as they are


def keys() -> Iterator[str]:
    """Every key, as the page writes it."""
    yield from WHOLE
    for place, part in PARTS.items():
        for name in part.model_fields:
            if f"{place}.{name}[]" not in PARTS:
                yield f"{place}.{name}"


def test_every_key_has_a_row_and_no_row_is_stale():
    table = TEXT.split("| key | meaning |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE) != []
    assert set(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)) == set(keys())


def test_every_key_of_the_top_level_is_explained():
    places = {key.partition(".")[0].removesuffix("[]") for key in keys()}
    assert places == {field.alias or name for name, field in Deployment.model_fields.items()}


def test_the_figures_are_ones_that_a_run_gives():
    source = (SOURCE / "engine" / "measure" / "measure.py").read_text(encoding="utf-8")
    table = TEXT.split("| metric | meaning |")[1]
    for name in re.findall(r"`([a-z_.0-9]+)`", "\n".join(re.findall(r"^\| (.*?) \|", table, re.M))):
        assert name.partition(".")[0] in source, name
