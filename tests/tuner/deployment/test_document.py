"""Deployment files: the contract's order, a round trip, strict reading, the shipped schema."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from tuner.definition.strict_yaml import dump_yaml
from tuner.deployment.document import (
    SCHEMA_FILE,
    Deployment,
    deployment_schema,
    dump_deployment,
    load_deployment,
    parse_deployment,
)
from tuner.errors import DeploymentError

ORDER = [
    "schema", "model", "budget", "engine", "measured", "quality", "neighbours", "machine",
    "provenance", "workload",
]  # fmt: skip


@pytest.fixture
def exported(finished: Path) -> Path:
    return finished / "expertune-small.yaml"


def test_the_top_level_has_the_contracts_order(exported: Path):
    data = yaml.safe_load(exported.read_text(encoding="utf-8"))
    assert list(data) == ORDER
    assert set(data["measured"]["output_tps"]) >= {"value", "low", "high", "n", "unit"}
    assert set(data["measured"]["sentinel"]) == {"compute_ms", "read_ms"}
    assert 0 < len(data["neighbours"]) <= 3
    assert data["quality"]["value"] <= 1.0


def test_a_round_trip_changes_nothing(exported: Path):
    text = exported.read_text(encoding="utf-8")
    assert dump_deployment(parse_deployment(text)) == text


def test_prompts_stand_last_and_the_rest_is_short(exported: Path):
    lines = exported.read_text(encoding="utf-8").splitlines()
    assert lines[[*lines].index("workload:") :][-1].startswith("  continuations:")
    engine = lines[lines.index("engine:") + 1 : lines.index("measured:")]
    assert len(engine) < 10
    assert max(map(len, lines)) <= 150


def former_order(deployment: Deployment) -> str:
    """The file as it was written before: every setting, prompts in the middle."""
    data = json.loads(deployment.model_dump_json(by_alias=True))
    data["workload"] = data.pop("workload")
    order = ["schema", "model", "budget", "engine", "workload"]
    return dump_yaml({**{key: data[key] for key in order}, **data})


def test_files_of_the_former_order_with_every_setting_are_read(exported: Path):
    deployment = load_deployment(exported)
    text = former_order(deployment)
    assert parse_deployment(text) == deployment
    assert list(yaml.safe_load(text))[4] == "workload"
    assert "predictor: " in text
    jsonschema.validate(yaml.safe_load(text), json.loads(SCHEMA_FILE.read_text()))


def test_a_file_without_prefill_figures_is_read(exported: Path):
    data = yaml.safe_load(exported.read_text(encoding="utf-8"))
    del data["quality"]["prefill_kld_mean"], data["quality"]["prefill_top1_agreement"]
    quality = parse_deployment(yaml.safe_dump(data, sort_keys=False)).quality
    assert quality is not None
    assert quality.prefill_kld_mean is None
    jsonschema.validate(data, json.loads(SCHEMA_FILE.read_text()))


def test_a_file_of_before_the_names_says_what_to_do(exported: Path):
    data = yaml.safe_load(exported.read_text(encoding="utf-8"))
    data["engine"]["precision"]["dense_bits"] = 16
    with pytest.raises(DeploymentError, match="has to be made again by a study"):
        parse_deployment(yaml.safe_dump(data, sort_keys=False))


def test_the_shipped_schema_is_the_codes():
    shipped = json.loads(SCHEMA_FILE.read_text())
    assert shipped == deployment_schema(), "run docs/build/deployment_schema.py"


def test_what_is_exported_obeys_the_shipped_schema(exported: Path):
    jsonschema.validate(
        yaml.safe_load(exported.read_text(encoding="utf-8")), json.loads(SCHEMA_FILE.read_text())
    )


def test_the_engine_section_is_a_complete_config(exported: Path):
    deployment = load_deployment(exported)
    assert deployment.config().to_dict() == deployment.engine
    assert isinstance(deployment.engine["cache"]["expert_bytes"], int)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(schema="expertune/v9"), "'expertune/v9'.*update expertune"),
        (lambda d: d.pop("schema"), "is no deployment"),
        (lambda d: d.update(modell=1), "nearest is 'model'"),
        (lambda d: d["model"].update(fingerprnt="x"), "nearest is 'fingerprint'"),
        (lambda d: d["engine"]["cache"].update(expert_byte=1), "nearest is 'cache.expert_bytes'"),
        (lambda d: d["engine"]["cache"].pop("expert_bytes"), "missing: cache.expert_bytes"),
        (lambda d: d["engine"].pop("device"), "missing: device.name"),
        (lambda d: d["engine"].update(batch={"count": "4"}), "must be resolved"),
        (lambda d: d["engine"]["precision"].update(bits=5), "allowed are 16"),
        (lambda d: d["workload"].update(sequences=9), "hash does not match"),
        (lambda d: d["measured"].update(sentinel=d["measured"]["tpot_ms"]), "sentinel"),
        (lambda d: d.pop("provenance"), "'provenance' is missing"),
    ],
)
def test_what_is_not_exactly_a_deployment_is_refused(exported: Path, change, says: str):
    data = yaml.safe_load(exported.read_text(encoding="utf-8"))
    change(data)
    with pytest.raises(DeploymentError, match=says):
        parse_deployment(yaml.safe_dump(data))


def test_yaml_that_would_build_objects_is_refused():
    with pytest.raises(DeploymentError, match="not safe YAML"):
        parse_deployment("schema: !!python/object/apply:os.getcwd []")
