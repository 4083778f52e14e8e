"""What a deployment leaves out comes back exactly, whatever the config, whatever the code's
defaults."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, get_type_hints

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from engine.config.choices import choices_of
from engine.config.ranges import RANGES
from engine.config.settings import EngineConfig, config_paths
from tests.tuner.deployment.formats.made import deployment
from tuner.definition.policies import load_policy, policy_names
from tuner.deployment import defaults
from tuner.deployment.defaults import ALWAYS, changed_paths, changed_settings, pinned_defaults
from tuner.deployment.document import dump_deployment, parse_deployment
from tuner.errors import DeploymentError

HINTS = {
    f"{section.name}.{name}": hint
    for section in dataclasses.fields(EngineConfig)
    for name, hint in get_type_hints(
        type(getattr(EngineConfig(), section.name)), include_extras=True
    ).items()
}
NAMES = st.text("abcdefgh_", min_size=1, max_size=8)


def values_of(path: str) -> st.SearchStrategy[Any]:
    """Values of a setting, within its range."""
    hint, (low, high) = HINTS[path], RANGES.get(path, (0, 100))
    if path.endswith(".options"):
        whole = st.integers(-(2**63), 2**63 - 1)
        return st.dictionaries(NAMES, st.one_of(whole, st.booleans(), NAMES), max_size=3)
    if path in ("cache.expert_bytes", "host.bytes"):
        return st.integers(0, 1 << 50)
    if path == "device.name":
        return st.sampled_from(["cpu", "cuda:0"])
    if choices := choices_of(hint):
        return st.sampled_from(choices)
    if hint is bool:
        return st.booleans()
    if hint is int:
        return st.integers(int(low), int(high))
    return st.floats(low, high, allow_nan=False)


@st.composite
def configs(draw: st.DrawFn) -> EngineConfig:
    """A config with any settings changed."""
    paths = draw(st.sets(st.sampled_from(config_paths()))) | set(ALWAYS)
    return EngineConfig().overlay({path: draw(values_of(path)) for path in sorted(paths)})


def comes_back(settings: Mapping[str, Any]) -> None:
    made = deployment(dict(settings))
    read = parse_deployment(dump_deployment(made))
    assert read == made
    assert json.dumps(read.engine) == json.dumps(made.engine)  # of the same types, in one order
    assert read.config().digest() == made.config().digest()


@given(configs())
def test_any_config_comes_back_exactly(config: EngineConfig):
    comes_back(config.flat())


@pytest.mark.parametrize("name", policy_names())
def test_every_policy_comes_back_exactly(name: str):
    comes_back(load_policy(name).engine)


@given(configs())
def test_what_is_shown_is_what_differs(config: EngineConfig):
    changed = changed_paths(config.flat())
    plain = {f"{s}.{n}": v for s, values in pinned_defaults().items() for n, v in values.items()}
    for path, value in config.flat().items():
        kept = path in ALWAYS or path not in plain or value != plain[path]
        assert (path in changed) == kept, path
    nested = changed_settings(config.to_dict())
    assert {f"{s}.{n}": v for s, values in nested.items() for n, v in values.items()} == changed


def test_the_pinned_defaults_are_todays():
    """Where a default changes or a setting is added, this test is what changes: v1 keeps its
    file."""
    todays = EngineConfig().to_dict()
    assert todays["host"].pop("bytes") == "auto"
    assert todays["placement"].pop("options") == {}
    assert todays["compute"].pop("capture") is False
    assert todays["precision"].pop("activation_bits") == 16
    assert todays["device"].pop("context_bytes") == 0
    pinned = {name: dict(values) for name, values in pinned_defaults().items()}
    assert pinned["host"].pop("bytes") == 0
    assert pinned == todays


def test_a_default_that_changes_in_the_code_changes_no_file(monkeypatch: pytest.MonkeyPatch):
    text = dump_deployment(deployment())
    assert "predictor" not in text
    changed = pinned_defaults()
    changed["prefetch"]["predictor"] = "next_gate"
    monkeypatch.setattr(defaults, "pinned_defaults", lambda: changed)
    assert parse_deployment(text).config().prefetch.predictor == "next_gate"
    made = deployment({"prefetch.predictor": "none"})
    assert "predictor: none" in dump_deployment(made)


def test_a_setting_that_v1_does_not_know_is_written_and_read_at_the_codes_default(
    monkeypatch: pytest.MonkeyPatch,
):
    older = pinned_defaults()
    del older["cpu"], older["kv"]["elastic"]
    monkeypatch.setattr(defaults, "pinned_defaults", lambda: older)
    text = dump_deployment(deployment())
    assert "elastic: false" in text
    assert parse_deployment(text) == deployment()
    data = yaml.safe_load(text)
    del data["engine"]["cpu"], data["engine"]["kv"]["elastic"]
    assert parse_deployment(yaml.safe_dump(data)) == deployment()


def test_a_section_that_does_not_exist_is_refused():
    data = yaml.safe_load(dump_deployment(deployment()))
    data["engine"]["cach"] = {"expert_bytes": 1}
    with pytest.raises(DeploymentError, match="cach"):
        parse_deployment(yaml.safe_dump(data))
