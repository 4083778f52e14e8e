"""Networks and pre-gates trained on a trace predict what its gate inputs decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import ConfigError
from engine.policy import registry
from engine.trace.trace import Trace, TracePass
from engine.train.__main__ import run
from engine.train.predictor import samples
from tests.engine.policy.made import make_context

LAYERS, EXPERTS, CHOSEN, HIDDEN, TOKENS = 3, 6, 2, 8, 400


@pytest.fixture(scope="module")
def trace() -> Trace:
    """Every layer's router is a linear map of one vector that all layers read."""
    random = np.random.default_rng(0)
    inputs = random.normal(size=(TOKENS, HIDDEN)).astype(np.float16)
    routers = random.normal(size=(LAYERS, EXPERTS, HIDDEN))
    scores = np.einsum("led,nd->nle", routers, inputs.astype(float))
    experts = np.argsort(-scores, -1)[..., :CHOSEN].astype(np.int16)
    return Trace(
        passes=tuple(TracePass(0, "decode", (1,), row) for row in range(TOKENS)),
        experts=experts,
        weights=np.full(experts.shape, 0.5, np.float16),
        probabilities=None,
        look_ahead=None,
        embeddings=None,
        gate_inputs=np.repeat(inputs[:, None], LAYERS, 1),
        facts={},
    )


class GateInput:
    """One row of gate inputs."""

    def __init__(self, row: np.ndarray) -> None:
        self._row = row

    def gate_input(self) -> np.ndarray:
        return self._row[None]

    def top_experts(self, layer: int, count: int) -> list[list[int]]:
        raise AssertionError("a trained predictor needs no later router")


def predicted_fraction(name: str, file: Path, trace: Trace) -> float:
    """Which fraction of layer 1's choices the policy predicts at layer 0's gate."""
    with np.load(file) as arrays:
        learned = dict(arrays)
    context = make_context(LAYERS, EXPERTS, CHOSEN, learned=learned, prefetch__depth=1)
    predictor = registry.PREDICTORS[name](context)  # type: ignore[index]
    assert trace.gate_inputs is not None
    hits = 0
    for row in range(TOKENS):
        (prediction,) = predictor.gate_entered(0, 0, GateInput(trace.gate_inputs[row, 0]))
        assert prediction.layer == 1
        hits += len(set(prediction.experts) & set(trace.experts[row, 1].tolist()))
    return hits / (TOKENS * CHOSEN)


def train(what: str, trace: Trace, folder: Path, **options: int) -> dict[str, Any]:
    trace.save(folder / "trace.npz")
    return run(what, str(folder / "trace.npz"), str(folder / "learned.npz"), **options)


def test_a_trained_network_predicts_the_next_layer(trace: Trace, tmp_path: Path) -> None:
    found = train("predictor", trace, tmp_path, hidden=32, steps=800)
    assert len(found["accuracies"]) == LAYERS - 1
    assert predicted_fraction("mlp", tmp_path / "learned.npz", trace) > 0.8


def test_stride_two_reaches_one_layer_further(trace: Trace, tmp_path: Path) -> None:
    train("predictor", trace, tmp_path, stride=2, steps=1, hidden=4)
    with np.load(tmp_path / "learned.npz") as arrays:
        assert sorted(arrays) == ["mlp.0.b1", "mlp.0.b2", "mlp.0.w1", "mlp.0.w2", "mlp.stride"]
        assert arrays["mlp.0.w1"].shape == (HIDDEN, 4)
        assert arrays["mlp.0.w1"].dtype == np.float32
        assert int(arrays["mlp.stride"]) == 2


def test_distilled_pre_gates_predict_the_next_layer(trace: Trace, tmp_path: Path) -> None:
    found = train("pregates", trace, tmp_path, steps=800)
    assert len(found["accuracies"]) == LAYERS - 1
    assert predicted_fraction("pregate", tmp_path / "learned.npz", trace) > 0.85


def test_two_predictors_share_a_file(trace: Trace, tmp_path: Path) -> None:
    train("predictor", trace, tmp_path, hidden=4, steps=1)
    train("pregates", trace, tmp_path, steps=1)
    with np.load(tmp_path / "learned.npz") as arrays:
        assert {name.split(".")[0] for name in arrays} == {"mlp", "pregate"}


def test_a_trace_without_gate_inputs_is_refused(trace: Trace) -> None:
    bare = Trace(trace.passes, trace.experts, trace.weights, None, None, None, None, {})
    with pytest.raises(ConfigError, match="no gate inputs"):
        samples(bare, 0, 1)


def test_sentinels_are_no_choice(trace: Trace) -> None:
    experts = trace.experts.copy()
    experts[0, 1] = (3, -1)
    short = Trace(trace.passes, experts, trace.weights, None, None, None, trace.gate_inputs, {})
    assert samples(short, 0, 1).chosen[0].tolist() == [0, 0, 0, 1, 0, 0]
