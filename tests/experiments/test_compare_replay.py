"""Our hits against a plain cache, what counts as a difference; with the baselines extra, theirs."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from typer import Typer
from typer.testing import CliRunner

from experiments.compare_replay import (
    Compared,
    _lru,
    compare_single,
    compare_tokens,
    made_trace,
    main,
    our_hits,
    single_requests,
)

TRACE = made_trace(tokens=60)


class PlainLru:
    """A list, the oldest first."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.order: list[object] = []

    def __contains__(self, key: object) -> bool:
        return key in self.order

    def touch(self, key: object) -> bool:
        hit = key in self.order
        if hit:
            self.order.remove(key)
        self.order = [*self.order, key][-self.slots :]
        return hit


def test_single_requests_keep_every_choice_in_order():
    single = single_requests(TRACE)
    assert single.experts.shape == (60 * 4, 3, 1)
    assert single.experts[:4, 1, 0].tolist() == TRACE.experts[0, 1].tolist()


@pytest.mark.parametrize("slots", [4, 6, 12])
def test_our_lru_is_a_plain_one(slots: int):
    single = single_requests(TRACE)
    expected = 0
    for layer in range(TRACE.layers):
        cache = PlainLru(slots)
        expected += sum(cache.touch(e) for e in single.experts[:, layer, 0].tolist())
    assert our_hits(single, slots, _lru) == expected


@pytest.mark.parametrize(
    ("must", "theirs", "holds"),
    [("equal", 5, True), ("equal", 4, False), ("at least", 4, True), ("at least", 6, False),
     ("-", 9, True)],
)  # fmt: skip
def test_a_stated_difference_is_none(must, theirs: int, holds: bool):
    assert Compared("p", 5, theirs, must).holds is holds


def test_the_command_fails_where_replays_differ(monkeypatch: pytest.MonkeyPatch):
    def count(scores: object, chosen: int, slots: int) -> tuple[int, int]:
        return 1, 1

    lying = ModuleType("moe_policylang.benchmark.replay")
    lying.POLICIES = dict.fromkeys(("topk_lru", "topk_lfu", "belady"), count)
    lying.simulate_flat = lambda *_: (1, 1)
    lying.LRUCache = PlainLru
    package = ModuleType("moe_policylang.benchmark")
    package.replay = lying
    monkeypatch.setitem(sys.modules, "moe_policylang", ModuleType("moe_policylang"))
    monkeypatch.setitem(sys.modules, "moe_policylang.benchmark", package)
    app = Typer()
    app.command()(main)
    result = CliRunner().invoke(app, ["--tokens", "60"])
    assert result.exit_code == 1
    assert "DIFFERS" in result.output


def test_the_command_names_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "moe_policylang", None)
    app = Typer()
    app.command()(main)
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    assert "[baselines]" in result.output


@pytest.mark.baselines
@pytest.mark.parametrize("slots", [4, 6, 12, 24])
def test_hits_equal_those_of_moe_policylang(slots: int):
    try:
        from moe_policylang.benchmark import replay
    except ImportError as error:
        pytest.skip(f'{error}: pip install -e ".[baselines]"')
    rows = [*compare_single(TRACE, slots, replay), *compare_tokens(TRACE, slots, replay)]
    assert [row for row in rows if not row.holds] == []
    assert {row.policy for row in rows if row.must == "equal"} >= {"LRU", "Belady"}
