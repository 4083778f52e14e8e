"""A study on a card of which other programs hold a part: theirs is not taken for its own.

The card is simulated: the fake engine allocates there what each config needs, under the device's
limit, and reads its memory from outside.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from engine.config.settings import EngineConfig
from engine.contract.requests import Workload
from engine.device.accelerator import AcceleratorDevice
from engine.memory.plan import context_bytes, on_opened_device
from tests.fakes import in_process
from tests.fakes.fake_engine import FakeEngine
from tests.fakes.simulated_cards import Card, simulate
from tests.tuner.conftest import Tune

OTHERS_BYTES = 2 << 30
WORDS = ("--definition", "study.yaml", "--objectives", "output_tps,tpot_ms", "--json")


class CardEngine(FakeEngine):
    """Holds what the memory equation says of a config on the card."""

    held: Any = None
    simulated: ClassVar[Card]
    sources: ClassVar[set[str]] = set()

    def describe(self, *given: Any, **named: Any) -> dict[str, Any]:
        return {**super().describe(*given, **named), "device": "cuda:0"}

    def open(self, *given: Any, **named: Any) -> dict[str, Any]:
        torch.accelerator.empty_cache()
        self.simulated.has_context = False  # each opening is a process of its own
        self.card = AcceleratorDevice("cuda:0")
        device = {
            "device": self.card.name,
            "card": self.card.card,
            "context_bytes": self.card.context_bytes,
        }
        return {**super().open(*given, **named), **device}

    def configure(self, config: dict[str, Any]) -> dict[str, Any]:
        wanted = EngineConfig.from_dict(config)
        here = on_opened_device(wanted, self.card.name, self.card.context_bytes)
        answer = super().configure(here.to_dict())
        assert self.plan is not None
        self.held = None
        self.card.compact()
        self.card.limit(self.config.budget.vram_bytes)
        self.card.reset_peak()
        own_bytes = self.plan.total_bytes - context_bytes(self.config)
        self.held = self.card.allocate_arena(own_bytes - own_bytes % (2 << 20))
        return answer

    def seen_bytes(self, work: Workload) -> int:
        found = self.card.peak_bytes()
        self.sources.add(self.card.peak_source())
        return found


@pytest.mark.parametrize(
    ("processes", "source"),
    [("listed", "rest of this process by NVML"), ("hidden", "rest of the card's growth")],
)
def test_it_runs_in_a_small_budget_beside_programs_that_hold_more(
    tune: Tune, monkeypatch: pytest.MonkeyPatch, processes: str, source: str
) -> None:
    machine = simulate(
        monkeypatch, Card("aaa", others_bytes={1: OTHERS_BYTES}), processes=processes
    )
    monkeypatch.setattr(in_process, "FakeEngine", CardEngine)
    monkeypatch.setattr(CardEngine, "sources", set())
    monkeypatch.setattr(CardEngine, "simulated", machine.cards[0], raising=False)
    done = tune(*WORDS, "--vram", "600MB", "--trials", "4")
    assert done.code == 0, done.err
    trials = done.document["trials"]
    assert {trial["state"] for trial in trials} <= {"COMPLETE", "PRUNED"}
    assert any(trial["state"] == "COMPLETE" for trial in trials)
    context = machine.cards[0].context_bytes
    for trial in trials:
        seen = trial["memory"]["external_peak_bytes"]
        assert context < seen <= 600_000_000, "others hold more than that"
    assert CardEngine.sources == {f"torch reserved peak + {source}"}
