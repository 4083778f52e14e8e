"""The measures that compare workloads, on traces whose routing is known."""

from __future__ import annotations

import numpy as np
import pytest

from engine.trace.trace import Trace, TracePass
from experiments.compare_workloads import (
    between,
    between_prompts,
    common,
    divergence,
    held,
    losses,
    popularity,
    reuse_distances,
    token_rows,
)
from tests.fakes.fake_engine import facts_of

FACTS = {"model_facts": facts_of("m").to_json()}
EXPERTS = facts_of("m").experts


def trace_of(sequences: list[list[list[int]]]) -> Trace:
    """One MoE layer; each sequence a list of tokens, each a list of experts; all decoded."""
    passes, rows = [], []
    for group, tokens in enumerate(sequences):
        for chosen in tokens:
            passes.append(TracePass(group, "decode", (1,), len(rows)))
            rows.append([chosen])
    return Trace(tuple(passes), np.array(rows, np.int16), None, None, None, None, None, FACTS)


def test_popularity_leaves_out_what_was_not_chosen():
    found = popularity(np.array([[[0, 1]], [[0, -1]]], np.int16), 4)
    assert found.tolist() == [[pytest.approx(2 / 3), pytest.approx(1 / 3), 0, 0]]


def test_equal_routing_diverges_by_nothing_and_disjoint_routing_by_a_bit():
    one, other = np.array([[0.5, 0.5, 0, 0]]), np.array([[0, 0, 0.5, 0.5]])
    assert divergence(one, one) == 0
    assert divergence(one, other) == pytest.approx(1)
    assert (common(one, one), common(one, other)) == (1, 0)
    assert (held(one, one), held(one, other)) == (0.5, 0)


def test_a_reuse_distance_counts_the_other_experts_since():
    trace = trace_of([[[0], [1], [2], [0], [0]]])
    assert reuse_distances(trace).tolist() == [EXPERTS, EXPERTS, EXPERTS, 2, 0]


def test_sequences_keep_their_rows():
    rows = token_rows(trace_of([[[0], [1]], [[2]]]))
    assert {group: found.tolist() for group, found in rows.items()} == {0: [0, 1], 1: [2]}


def test_a_workload_differs_less_from_itself_than_from_another():
    random = np.random.default_rng(1)

    def made(first: int) -> Trace:
        return trace_of([[[int(first + random.integers(3))] for _ in range(30)] for _ in range(8)])

    low, high = made(0), made(2)
    own, other = (between(low, with_, 60, divergence)[0] for with_ in (low, high))
    assert own < 0.1 < other
    own, other = (between_prompts(low, with_, 20)[0] for with_ in (low, high))
    assert own < other


def test_a_loss_is_against_the_best_config_of_each_workload():
    speeds = {"a": {"x": 10.0, "y": 6.0}, "b": {"x": 8.0, "y": 8.0}}
    found = losses(speeds, ["x", "y"])
    assert found == [[0, pytest.approx(0.25)], [pytest.approx(0.2), 0]]
