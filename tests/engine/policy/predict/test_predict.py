"""Each predictor predicts what can be worked out by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from engine.errors import ConfigError
from engine.policy import registry
from engine.policy.events import Floats, PassStart, Routing
from engine.policy.predict.activation_path import ActivationPathPredictor
from engine.policy.predict.base import Prediction, Predictor
from engine.policy.predict.expert_map import ExpertMapPredictor
from engine.policy.predict.next_gate import rank_by_count
from engine.policy.predict.pregate import PregatePredictor
from engine.policy.predict.top import top_columns
from engine.types import Phase
from tests.engine.policy.made import (
    HIDDEN,
    TraceView,
    learned_arrays,
    make_context,
    make_trace,
    run_over,
)


def build(name: Any, *args: Any, **overlay: Any) -> Any:
    overlay.setdefault("prefetch__depth", 1)
    context = make_context(*args, prefetch__predictor=name, **overlay)
    return registry.PREDICTORS[name](context)


def run_pass(
    predictor: Predictor,
    layers: list[list[list[int]]],
    *,
    phase: Phase = "decode",
    embedding: list[float] | None = None,
    probabilities: list[list[float]] | None = None,
) -> dict[int, list[Prediction]]:
    """One pass of one micro-batch, the experts [L][T][K]; predictions by event (-1: its begin)."""
    tokens = len(layers[0])
    vectors = None if embedding is None else np.array([embedding] * tokens, np.float32)
    found = {-1: list(predictor.begin_pass(PassStart(phase, (tokens,), vectors)))}
    for layer, rows in enumerate(layers):
        fractions = None
        if probabilities is not None:
            fractions = np.array([probabilities[layer]] * tokens, np.float32)
        predictor.routed(layer, 0, Routing(rows, None, fractions))
        found[layer] = list(predictor.layer_routed(layer))
    predictor.end_pass()
    return found


def test_next_gate_asks_for_k_and_the_extra_experts_and_ranks_by_count() -> None:
    predictor = build("next_gate", 2, 8, 2, prefetch__extra_experts=1)
    trace = make_trace([[[0, 1, 2], [3, 1, 2]], [[0, 1, 2], [1, 4, 2]]], tokens=[(2,)])
    (prediction,) = predictor.gate_entered(0, 0, TraceView(trace, slice(0, 2), 0))
    assert prediction == Prediction(1, (1, 2, 3, 4), (1.0, 1.0, 0.5, 0.5))
    assert rank_by_count(0, []).experts == ()


def test_the_last_token_repeats_and_the_first_layers_follow_the_last() -> None:
    predictor = build("repeat_last", 3, 8, 1)
    found = run_pass(predictor, [[[0], [1]], [[2], [3]], [[4], [5]]], phase="prefill")
    assert found == {-1: [], 0: [], 1: [], 2: [Prediction(0, (1,), (1.0,))]}
    found = run_pass(predictor, [[[6]], [[7]], [[0]]])
    assert [p.experts for p in found[0] + found[1] + found[2]] == [(3,), (5,), (6,)]
    predictor.begin_sequences()
    assert run_pass(predictor, [[[6]], [[7]], [[0]]])[0] == []


def test_every_sequence_of_a_decode_pass_repeats() -> None:
    predictor = build("repeat_last", 2, 8, 1)
    assert run_pass(predictor, [[[0], [1], [1]], [[2], [3], [4]]])[1] == [
        Prediction(0, (1, 0), (2 / 3, 1 / 3))
    ]


def test_popularity_counts_tokens_and_lets_the_past_fade() -> None:
    steady = build("popularity", 2, 8, 1, prefetch__options__decay=1.0)
    fading = build("popularity", 2, 8, 1, prefetch__options__decay=0.25)
    for predictor in (steady, fading):
        run_pass(predictor, [[[5], [5], [5]], [[6], [6], [6]]])
        run_pass(predictor, [[[1]], [[2]]])
    assert run_pass(steady, [[[1]], [[2]]])[-1] == [Prediction(0, (5,), (0.75,))]
    (faded,) = run_pass(fading, [[[1]], [[2]]])[-1]  # 5: 3/4, 1: 1
    assert faded.experts == (1,)
    assert faded.scores == pytest.approx((4 / 7,))


def test_popularity_keeps_counting_when_its_weights_become_large() -> None:
    predictor = build("popularity", 1, 8, 1, prefetch__options__decay=0.01)
    for number in range(300):
        run_pass(predictor, [[[number % 8]]])
    assert run_pass(predictor, [[[0]]])[-1][0].experts == (299 % 8,)


def test_correlated_experts_vote_with_their_tokens() -> None:
    predictor = build("correlation", 2, 8, 2, prefetch__extra_experts=1)
    # Layer 1 after 0: 4 and 5 twice, 6 once; after 1: 6 and 7; top-2 of 0 are 4 and 5.
    for before, after in ([0, 4], [0, 4], [0, 5], [0, 5], [0, 6], [1, 6], [1, 7]):
        run_pass(predictor, [[[before]], [[after]]])
    found = run_pass(predictor, [[[0], [0], [1]], [[4], [4], [7]]])
    # 0 has two tokens: 4 and 5 get two votes; 1 has one: 6 and 7 get one; k + 1 = 3 are taken.
    assert found[0] == [Prediction(1, (4, 5, 6), (2 / 3, 2 / 3, 1 / 3))]
    assert found[-1] == [Prediction(0, (0, 1), (5 / 7, 2 / 7))]


def test_correlation_adds_up_micro_batches_and_chains_to_later_layers() -> None:
    predictor = build("correlation", 3, 8, 1, prefetch__depth=2)
    for chain in ([0, 2, 4], [1, 3, 5]):
        run_pass(predictor, [[[e]] for e in chain])
    list(predictor.begin_pass(PassStart("decode", (1, 2))))
    predictor.routed(0, 0, Routing([[0]]))
    predictor.routed(0, 1, Routing([[1], [1]]))
    assert [p.experts for p in predictor.layer_routed(0)] == [(3,), (5,)]


def test_an_activation_path_follows_the_sequence_that_is_most_alike() -> None:
    predictor: ActivationPathPredictor = build(
        "activation_path", 3, 8, 2, prefetch__options__all_later=True
    )
    run_pass(predictor, [[[0, 1]], [[2, 3]], [[4, 5]]])
    predictor.begin_sequences()
    run_pass(predictor, [[[6, 7]], [[6, 7]], [[6, 7]]])
    predictor.begin_sequences()
    assert predictor.stored == 2
    found = run_pass(predictor, [[[0, 2]], [[2, 3]], [[6, 7]]])
    # Half of the matched row each, times 1 - 1/4 and 1 - 2/4.
    assert found[0] == [
        Prediction(1, (2, 3), (0.375, 0.375)),
        Prediction(2, (4, 5), (0.25, 0.25)),
    ]
    assert found[1][0].experts == (4, 5)
    assert found[-1] == []
    # The second pass begins with the path of the first: like the first sequence in two layers.
    assert [p.experts for p in run_pass(predictor, [[[0, 2]]] * 3)[-1]] == [(0, 1), (2, 3), (4, 5)]


def test_a_full_collection_replaces_the_most_similar_sequence() -> None:
    predictor = build("activation_path", 2, 8, 1, prefetch__options__capacity=2)
    for experts in ([0, 1], [4, 5], [0, 2]):
        run_pass(predictor, [[[e]] for e in experts])
        predictor.begin_sequences()
    assert predictor.stored == 2
    assert run_pass(predictor, [[[0]], [[2]]])[0][0].experts == (2,)
    assert run_pass(build("activation_path", 2, 8, 1), [[[0]], [[2]]])[0] == []


NEAR, FAR = [1.0] + [0.0] * (HIDDEN - 1), [0.0] * (HIDDEN - 1) + [1.0]
LEFT = [[0.7, 0.3, 0.0, 0.0]] * 3
RIGHT = [[0.0, 0.0, 0.4, 0.6]] * 3


def expert_map(**overlay: Any) -> ExpertMapPredictor:
    """Two maps: LEFT under the embedding NEAR, RIGHT under FAR; top-1 of 4 experts, 3 layers."""
    found: ExpertMapPredictor = build("expert_map", 3, 4, 1, **overlay)
    run_pass(found, [[[0]]] * 3, embedding=NEAR, probabilities=LEFT)
    run_pass(found, [[[3]]] * 3, embedding=FAR, probabilities=RIGHT)
    return found


def test_an_expert_map_is_found_by_meaning_first_and_by_its_path_later() -> None:
    predictor = expert_map()
    found = run_pass(predictor, [[[3]]] * 3, embedding=NEAR, probabilities=RIGHT)
    assert [(p.layer, p.experts) for p in found[-1]] == [(0, (0,))]
    assert [(p.layer, p.experts) for p in found[0]] == [(1, (3,))]
    assert [(p.layer, p.experts) for p in found[1]] == [(2, (3,))]
    assert found[2] == []


def test_an_expert_map_predicts_at_its_distance() -> None:
    predictor = expert_map(prefetch__depth=2)
    found = run_pass(predictor, [[[3]]] * 3, embedding=NEAR, probabilities=RIGHT)
    assert [p.layer for p in found[-1]] == [0, 1]
    assert [p.layer for p in found[0]] == [2]
    assert found[1] == []


def test_little_likeness_widens_the_selection() -> None:
    def chosen(cosine: float) -> tuple[int, ...]:
        embedding = [cosine, (1 - cosine**2) ** 0.5] + [0.0] * (HIDDEN - 2)
        fractions = [[0.5, 0.5, 0.0, 0.0]] * 3
        found = run_pass(expert_map(), [[[0]]] * 3, embedding=embedding, probabilities=fractions)
        return found[-1][0].experts

    assert chosen(1.0) == (0,)
    assert chosen(0.4) == (0,)  # 0.7 > 1 - 0.4
    assert chosen(0.2) == (0, 1)  # 0.7 <= 1 - 0.2


def test_the_map_store_is_bounded_and_replaces_what_is_redundant() -> None:
    predictor = expert_map(prefetch__options__capacity=2)
    alike = [[0.6, 0.4, 0.0, 0.0]] * 3
    for _ in range(5):
        run_pass(predictor, [[[0]]] * 3, embedding=NEAR, probabilities=alike)
    assert predictor.stored == 2
    (kept,) = run_pass(predictor, [[[3]]] * 3, embedding=FAR, probabilities=RIGHT)[-1]
    assert kept == Prediction(0, (3,), (pytest.approx(0.6),))  # type: ignore[arg-type]


def test_prefill_searches_once_for_the_mean_of_its_tokens() -> None:
    predictor = expert_map(prefetch__options__capacity=4)
    tokens = [[0], [0], [3]]
    run_pass(predictor, [tokens] * 3, phase="prefill", embedding=NEAR, probabilities=LEFT)
    assert predictor.stored == 3
    run_pass(predictor, [tokens] * 3, embedding=NEAR, probabilities=LEFT)
    assert predictor.stored == 4


def test_paths_that_grow_layer_by_layer_are_those_of_the_whole_map() -> None:
    random = np.random.default_rng(5)
    trace = make_trace(random.integers(0, 8, (12, 4, 1)), among=8)
    assert trace.probabilities is not None
    stored, query = trace.probabilities[:-1].astype(float), trace.probabilities[-1].astype(float)
    predictor = build("expert_map", 4, 8, 1)
    for row in stored:
        run_pass(predictor, [[[0]]] * 4, embedding=NEAR, probabilities=row.tolist())
    found = run_pass(predictor, [[[0]]] * 4, embedding=NEAR, probabilities=query.tolist())
    for layer in range(3):
        prefix = stored[:, : layer + 1].reshape(len(stored), -1)
        own = query[: layer + 1].reshape(-1)
        best = (prefix @ own / np.linalg.norm(prefix, axis=1)).argmax()
        (prediction,) = found[layer]
        assert prediction.experts[0] == stored[best, layer + 1].argmax()


def by_hand(arrays: dict[str, Floats], layer: int, gate_input: Floats, count: int) -> list[int]:
    w1, b1, w2, b2 = (arrays[f"mlp.{layer}.{name}"] for name in ("w1", "b1", "w2", "b2"))
    scores = np.maximum(gate_input @ w1 + b1, 0) @ w2 + b2
    return [int(e) for e in np.argsort(-scores)[:count]]


class View(TraceView):
    """A view of one token at a layer of a random trace."""

    def __init__(self, layer: int) -> None:
        super().__init__(make_trace(np.zeros((1, 4, 2))), slice(0, 1), layer)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_network_predicts_its_stride_ahead_always_at_the_gate_before(stride: int) -> None:
    arrays = learned_arrays(4, 8, stride=stride)
    with ThreadPoolExecutor(1) as pool:
        context = make_context(
            4, 8, 2, learned=arrays, submit=pool.submit,
            prefetch__depth=1, prefetch__options__stride=stride,
        )  # fmt: skip
        predictor = registry.PREDICTORS["mlp"](context)
        for _ in range(2):
            predictor.begin_pass(PassStart("decode", (1,)))
            found = [list(predictor.gate_entered(layer, 0, View(layer))) for layer in range(4)]
            for layer, predictions in enumerate(found):
                source = layer + 1 - stride
                if 0 <= source < 4 - stride:
                    (prediction,) = predictions
                    experts = by_hand(arrays, source, View(source).gate_input()[0], 2)
                    assert prediction == Prediction(source + stride, tuple(experts), (1.0, 1.0))
                else:
                    assert predictions == []


def test_stride_two_waits_for_its_product_at_the_next_gate_only() -> None:
    begun: list[tuple[Callable[[], Any], Future[Any]]] = []

    def submit(work: Callable[[], Any]) -> Future[Any]:
        begun.append((work, Future()))
        return begun[-1][1]

    context = make_context(
        4, 8, 2, learned=learned_arrays(4, 8, stride=2), submit=submit,
        prefetch__depth=1, prefetch__options__stride=2,
    )  # fmt: skip
    predictor = registry.PREDICTORS["mlp"](context)
    predictor.begin_pass(PassStart("decode", (1,)))
    assert list(predictor.gate_entered(0, 0, View(0))) == []
    work, pending = begun[0]
    timer = threading.Timer(0.01, lambda: pending.set_result(work()))
    timer.start()
    (prediction,) = predictor.gate_entered(1, 0, View(1))
    assert prediction.layer == 2
    timer.join()


def test_untrained_networks_are_an_error_that_says_how_to_train() -> None:
    with pytest.raises(ConfigError, match=r"tune train predictor --stride 1"):
        build("mlp", 4, 8, 2)
    with pytest.raises(ConfigError, match="trained for 2"):
        build("mlp", 4, 8, 2, learned=learned_arrays(4, 8, stride=2))


def test_pre_gates_predict_the_next_layer_and_without_them_next_gate_does() -> None:
    arrays = learned_arrays(4, 8, stride=1)
    gated: PregatePredictor = build("pregate", 4, 8, 2, learned=arrays)
    assert gated.fallback is None
    assert gated.needs == {"gate_input"}
    (prediction,) = gated.gate_entered(1, 0, View(1))
    scores = arrays["pregate.1"] @ View(1).gate_input()[0]
    assert prediction == Prediction(2, tuple(np.argsort(-scores)[:2].tolist()), (1.0, 1.0))
    assert list(gated.gate_entered(3, 0, View(3))) == []

    del arrays["pregate.2"]
    fallen: PregatePredictor = build("pregate", 4, 8, 2, learned=arrays)
    assert fallen.needs == {"top_experts"}
    assert fallen.fallback is not None
    assert "pregate.2" in fallen.fallback
    plain = build("next_gate", 4, 8, 2)
    assert list(fallen.gate_entered(1, 0, View(1))) == list(plain.gate_entered(1, 0, View(1)))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_after_an_oracle_every_demand_hits(depth: int) -> None:
    random = np.random.default_rng(3)
    chosen = np.array([[random.permutation(8)[:2] for _ in range(3)] for _ in range(20)])
    trace = make_trace(chosen, tokens=[(2,), *[(1,)] * 18])
    context = make_context(
        3, 8, 2, future=trace, prefetch__predictor="oracle", prefetch__depth=depth
    )
    policy = run_over(registry.build_policy(context, 12, host_compute=False), trace)
    counters = policy.counters
    assert counters.misses == {"prefill": 0, "decode": 0}
    assert counters.predicted == counters.predicted_demanded == counters.predicted_layer_demand


def test_an_oracle_without_a_future_predicts_nothing() -> None:
    oracle = build("oracle", 3, 8, 1)
    assert run_pass(oracle, [[[0]]] * 3) == {-1: [], 0: [], 1: [], 2: []}


@pytest.mark.parametrize("name", ["popularity", "correlation", "activation_path", "expert_map"])
def test_statistics_start_from_a_recorded_trace(name: Any) -> None:
    chosen = [[[0, 1], [2, 3], [4, 5]], [[1, 0], [3, 2], [5, 4]]]
    history = make_trace(chosen, groups=[0, 1])
    predictor = build(name, 3, 8, 2, history=history)
    assert history.probabilities is not None
    assert history.embeddings is not None
    found = run_pass(
        predictor,
        [[[0, 1]], [[2, 3]], [[4, 5]]],
        embedding=history.embeddings[0].tolist(),
        probabilities=history.probabilities[0].tolist(),
    )
    assert set(found[0][0].experts) == {2, 3}
    with pytest.raises(ConfigError, match="of this model"):
        build(name, 4, 8, 2, history=history)


def test_maps_cannot_start_from_a_trace_without_probabilities() -> None:
    history = make_trace([[[0, 1]] * 3])
    object.__setattr__(history, "probabilities", None)
    with pytest.raises(ConfigError, match="has no probabilities"):
        build("expert_map", 3, 8, 2, history=history)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_best_columns_of_many_rows_are_those_of_each_row(count: int) -> None:
    scores = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    assert top_columns(scores, count) == np.argsort(-scores, axis=1)[:, :count].tolist()
    assert top_columns(scores[:1], count) == top_columns(scores, count)[:1]
