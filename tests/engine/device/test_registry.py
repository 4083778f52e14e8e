"""Which device `auto` opens, on builds of torch and machines that are not here."""

from __future__ import annotations

import pytest
import torch

from engine.device.cpu import CpuDevice
from engine.device.registry import device_name, named_card, open_device
from engine.errors import UsageError
from tests.fakes.simulated_cards import Card, simulate


@pytest.fixture
def built_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch as pip installs it on Linux, on a laptop without a card: current_accelerator tells what
    it was built for, unless it is asked to check."""

    def current(check_available: bool = False) -> torch.device | None:
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", current)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


@pytest.mark.usefixtures("built_for_cuda")
def test_auto_is_the_cpu_when_torch_was_built_for_cuda_and_no_card_is_here() -> None:
    assert isinstance(open_device("auto"), CpuDevice)


@pytest.mark.usefixtures("built_for_cuda")
def test_a_card_that_is_not_here_is_said_with_what_to_check() -> None:
    with pytest.raises(UsageError, match=r"built for cuda and sees no such card.*--device cpu"):
        open_device("cuda:0")


def test_auto_is_the_cpu_with_a_build_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available=False: None
    )
    assert isinstance(open_device("auto"), CpuDevice)
    with pytest.raises(UsageError, match="this build of it knows no accelerator"):
        open_device("cuda")


def test_a_card_is_named_without_opening_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = simulate(monkeypatch, Card("aaa"), Card("bbb"))
    assert device_name("auto") == "cuda:0"
    assert device_name("cuda:1") == "cuda:1"
    assert named_card("cuda:1") == "bbb"
    assert not any(card.has_context for card in machine.cards)
    with pytest.raises(UsageError, match="torch sees 2 such devices"):
        device_name("cuda:2")
    opened = open_device("cuda:1")
    assert (opened.name, opened.card) == ("cuda:1", "bbb")
    assert [card.has_context for card in machine.cards] == [False, True]


def test_host_memory_is_no_card() -> None:
    assert named_card(device_name("cpu")) is None
    assert named_card(device_name("emulated:h100")) is None
    assert open_device("emulated:h100").card is None
