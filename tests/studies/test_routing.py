"""Routing losses and the replayed cache give the values that can be worked out by hand."""

import pytest
import torch

from studies.demo.build.routing import lru_hit_rate, routing_losses
from studies.demo.build.train import Progress, rate_factor


def test_repeated_routes_hit_always_and_new_routes_never() -> None:
    same = torch.tensor([[0, 1], [2, 3], [0, 1], [2, 3], [0, 1]])
    assert lru_hit_rate(same, capacity=4) == 1.0
    assert lru_hit_rate(torch.arange(20).view(10, 2), capacity=4) == 0.0


def test_the_least_recently_used_expert_is_dropped() -> None:
    routes = torch.tensor([[0], [1], [0], [2], [0], [1]])
    assert lru_hit_rate(routes, capacity=2) == pytest.approx(2 / 4)


def test_even_use_has_balance_one_and_a_sure_repeat_costs_nothing() -> None:
    even = torch.eye(4).repeat_interleave(8, dim=0) * 50  # [32, 4], each expert 8 tokens in a row
    losses = routing_losses([even], sequences=4, chosen=1)
    assert float(losses.balance) == pytest.approx(1.0, abs=1e-3)
    assert float(losses.reuse) == pytest.approx(0.0, abs=1e-3)


def test_collapsed_use_costs_as_much_as_there_are_experts() -> None:
    collapsed = torch.tensor([[50.0, 0, 0, 0]]).repeat(8, 1)
    assert float(routing_losses([collapsed], 2, 1).balance) == pytest.approx(4.0, abs=1e-3)


def test_the_rate_warms_up_stays_flat_and_decays_to_zero() -> None:
    assert rate_factor(Progress(tokens=49), 100, None) == pytest.approx(0.5)
    assert rate_factor(Progress(tokens=5000), 100, None) == 1.0
    decaying = Progress(tokens=1500, decay_start_tokens=1000)
    assert rate_factor(decaying, 100, 1000) == pytest.approx(0.5)
    assert rate_factor(decaying, 100, 400) == 0.0
