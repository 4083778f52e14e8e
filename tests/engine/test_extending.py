"""A predictor, an eviction, an exporter, a kernel from outside: one file, one registry line."""

from pathlib import Path

import pytest

from engine.config import choices
from engine.config.settings import EngineConfig
from engine.errors import ConfigError
from engine.experts.kernels.registry import KernelSupport
from engine.policy import registry
from tests.engine.policy.made import make_context, make_trace, run_over
from tests.tuner.deployment.formats.made import deployment, facts
from tuner.deployment.export import check_format
from tuner.deployment.formats.base import Format
from tuner.deployment.formats.registry import FORMATS

PLUGIN = """
from engine.experts.kernels.torch_packed import TorchInt8
from engine.policy.evict.lru import LruEviction
from engine.policy.predict.base import Prediction
from engine.policy.predict.none import NoPredictor

class Fortune(NoPredictor):
    def layer_routed(self, layer):
        return [Prediction(layer + 1, (0, 1))] if layer == 0 else []

def build_fortune(context):
    return Fortune()

class Newest(LruEviction):
    def victim(self, candidates, incoming):
        return list(candidates)[-1]

def build_newest(context):
    return Newest()

class Doubling(TorchInt8):
    name = "doubling"
"""


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outside_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_predictor_is_one_line(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="fortune"):
        EngineConfig().overlay({"prefetch.predictor": "fortune"})
    monkeypatch.setitem(choices.PREDICTORS, "fortune", "outside_plugin:build_fortune")
    trace = make_trace([[[0, 2], [0, 1]], [[3, 2], [1, 0]]], among=4)
    context = make_context(2, 4, prefetch__predictor="fortune", prefetch__depth=1)
    policy = run_over(registry.build_policy(context, 4, host_compute=False), trace)
    assert policy.counters.predicted == 4
    assert policy.counters.predicted_demanded == 4


def test_an_eviction_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(choices.EVICTIONS, "newest", "outside_plugin:build_newest")
    trace = make_trace([[[0]], [[1]], [[2]], [[0]]], among=4)
    hits = {}
    for name in ("lru", "newest"):
        context = make_context(1, 4, cache__eviction=name)
        policy = run_over(registry.build_policy(context, 2, host_compute=False), trace)
        hits[name] = sum(policy.counters.hits.values())
    assert hits == {"lru": 0, "newest": 1}


def test_a_kernel_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(choices.KERNELS, "doubling", "outside_plugin:Doubling")
    config = EngineConfig().overlay({"kernel.name": "doubling"})
    kernel = KernelSupport(("torch_int8", "doubling")).kernel_for(8, config.kernel.name)
    assert kernel is not None
    assert kernel.name == "doubling"


def test_an_exporter_is_one_line(monkeypatch: pytest.MonkeyPatch):
    made = Format(lambda one, model: f"run {model.id}", ".txt", "text/plain", "says what to run")
    monkeypatch.setitem(FORMATS, "words", made)
    check_format("words")
    assert FORMATS["words"].render(deployment(), facts()) == f"run {facts().id}"
