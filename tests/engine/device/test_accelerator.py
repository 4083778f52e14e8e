"""What an accelerator says of this process's memory, and the limit on it, with simulated cards."""

from __future__ import annotations

import logging
import os
from typing import Any

import pytest
import torch

from engine.device import accelerator
from engine.device.accelerator import AcceleratorDevice
from engine.device.pages import allocate_pages
from engine.errors import DeviceMemoryError
from engine.facts.card_memory import CONTEXT_BYTES
from engine.worker.loop import _answer
from engine.worker.operations import Operations
from tests.fakes.simulated_cards import SEGMENT, Card, simulate

MIB = 1 << 20
PLACES: list[dict[str, Any]] = [
    {"processes": "listed"},
    {"processes": "host numbers"},
    {"processes": "hidden"},
    {"processes": "without bytes"},
    {"has_driver_library": False},
]


def cards() -> tuple[Card, Card]:
    return Card("aaa"), Card("bbb", others_bytes={1: 3 << 30, 7: 1 << 30})


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("index", [0, 1])
def test_other_programs_are_not_charged_to_this_process(
    monkeypatch: pytest.MonkeyPatch, place: dict[str, Any], index: int
) -> None:
    machine = simulate(monkeypatch, *cards(), **place)
    device = AcceleratorDevice(f"cuda:{index}")
    arena = device.allocate_arena(300 * MIB)
    card = machine.cards[index]
    measured = device.context_bytes
    unknown = CONTEXT_BYTES - card.context_bytes if measured is None else 0
    assert measured in (None, card.context_bytes)
    assert device.peak_bytes() == card.peak_bytes + card.context_bytes + unknown
    assert ("context assumed" in device.peak_source()) == (measured is None)
    assert not machine.cards[1 - index].has_context
    del arena


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ({"processes": "listed"}, "torch reserved peak + rest of this process by NVML"),
        ({"processes": "without bytes"}, "torch reserved peak + rest of the card's growth"),
        (
            {"has_driver_library": False},
            "torch reserved peak + rest of the card's growth, context assumed",
        ),
        (
            {"has_driver_library": False, "knows_memory": False},
            "torch reserved peak + context, context assumed",
        ),
    ],
)
def test_the_source_of_the_peak_is_named(
    monkeypatch: pytest.MonkeyPatch, place: dict[str, Any], expected: str
) -> None:
    simulate(monkeypatch, *cards(), **place)
    device = AcceleratorDevice("cuda:0")
    assert device.peak_bytes() >= CONTEXT_BYTES * (device.context_bytes is None)
    assert device.peak_source() == expected


@pytest.mark.parametrize("place", PLACES[:4], ids=str)
def test_a_peak_between_two_readings_is_seen(
    monkeypatch: pytest.MonkeyPatch, place: dict[str, Any]
) -> None:
    machine = simulate(monkeypatch, *cards(), **place)
    device = AcceleratorDevice("cuda:0")
    device.reset_peak()
    arena = device.allocate_arena(600 * MIB)
    del arena
    device.compact()
    assert machine.cards[0].reserved_bytes < 600 * MIB
    assert device.peak_bytes() >= 600 * MIB + machine.cards[0].context_bytes
    device.reset_peak()
    assert device.peak_bytes() < 600 * MIB


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_kernels_that_are_loaded_later_count(
    monkeypatch: pytest.MonkeyPatch, place: dict[str, Any]
) -> None:
    machine = simulate(monkeypatch, *cards(), **place)
    device = AcceleratorDevice("cuda:0")
    before = device.peak_bytes()
    machine.cards[0].kernels_bytes = 90 * MIB
    assert device.peak_bytes() == before + 90 * MIB


def test_what_another_program_takes_counts_only_where_nothing_counts_by_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for place, charged in zip(PLACES, (0, 0, 50 * MIB, 50 * MIB, 50 * MIB), strict=True):
        machine = simulate(monkeypatch, *cards(), **place)
        device = AcceleratorDevice("cuda:0")
        before = device.peak_bytes()
        machine.cards[0].others_bytes[99] = 50 * MIB
        assert device.peak_bytes() - before == charged, place
        machine.cards[0].others_bytes.clear()  # the desktop ends: never less than the context
        assert device.peak_bytes() >= machine.cards[0].peak_bytes + 420 * MIB


def test_inside_a_container_another_program_with_this_number_is_not_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = Card("aaa", others_bytes={os.getpid(): 2 << 30})
    simulate(monkeypatch, card, processes="host numbers")
    device = AcceleratorDevice("cuda:0")
    assert device.peak_bytes() == card.peak_bytes + card.context_bytes
    assert "NVML" in device.peak_source()


def test_a_second_device_object_finds_the_process_that_is_there_already(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = simulate(monkeypatch, *cards())
    AcceleratorDevice("cuda:0")
    again = AcceleratorDevice("cuda:0")
    assert again.context_bytes == machine.cards[0].context_bytes
    assert again.peak_bytes() == machine.cards[0].peak_bytes + machine.cards[0].context_bytes
    assert "NVML" in again.peak_source()


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_the_budget_bounds_torch_and_is_lifted(
    monkeypatch: pytest.MonkeyPatch, place: dict[str, Any]
) -> None:
    machine = simulate(monkeypatch, *cards(), **place)
    device, card = AcceleratorDevice("cuda:0"), machine.cards[0]
    budget = 2 << 30
    device.limit(budget)
    context = card.context_bytes if device.context_bytes else CONTEXT_BYTES
    room = budget - context - card.reserved_bytes
    fits = device.allocate_arena(room // SEGMENT * SEGMENT)
    with pytest.raises(DeviceMemoryError, match=r"passes its budget of 2\.15 GB") as refused:
        device.allocate_arena(8 * MIB)
    assert refused.value.smallest_bytes == budget + 8 * MIB
    assert device.peak_bytes() <= budget
    device.limit(0)
    more = device.allocate_arena(8 * MIB)
    del fits, more


def test_the_limit_leaves_room_for_the_kernels_that_were_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = simulate(monkeypatch, *cards())
    device = AcceleratorDevice("cuda:0")
    machine.cards[0].kernels_bytes = 100 * MIB
    device.limit(1 << 30)
    with pytest.raises(DeviceMemoryError):
        device.allocate_arena((1 << 30) - 500 * MIB)


def test_a_card_that_others_fill_is_said_to_be_full(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = simulate(monkeypatch, *cards())
    device = AcceleratorDevice("cuda:1")
    device.limit(7 << 30)
    with pytest.raises(DeviceMemoryError, match=r"cannot give .* are free on it: close") as refused:
        device.allocate_arena(5 << 30)
    assert refused.value.smallest_bytes is None
    assert machine.cards[1].others_bytes


def test_torchs_own_error_is_answered_as_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    operations = Operations(tmp_path, lambda event: None)

    def fail() -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 ...")

    monkeypatch.setitem(operations._handlers, "profile", fail)
    error = _answer(operations, "profile", {})["error"]
    assert (error["class"], error["exit_code"]) == ("out_of_memory", 3)
    assert "cannot give 21 MB more: close other programs" in error["message"]
    assert "GPU 0" not in error["message"]


def test_a_thread_that_computes_takes_the_card_that_was_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = simulate(monkeypatch, *cards())
    device = AcceleratorDevice("cuda:1")
    machine.present = 0  # as in a new thread
    device.bind_thread()
    assert machine.present == 1


def test_buffers_that_cannot_be_pinned_are_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    simulate(monkeypatch, *cards())
    device = AcceleratorDevice("cuda:0")
    made = torch.empty

    def refuse(*size: int, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return made(*size, **options)

    monkeypatch.setattr(torch, "empty", refuse)
    with caplog.at_level(logging.WARNING):
        buffers = [device.allocate_staging(5000) for _ in range(3)]
    assert all(one.numel() == 5000 for one in buffers)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("buffers of cuda:0 are not pinned")


class Runtime:
    """Registers pages until `allowed_bytes` are used up, as cudart does."""

    def __init__(self, allowed_bytes: int) -> None:
        self.left = allowed_bytes
        self.registered: dict[int, int] = {}

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        if size > self.left:
            return 2  # cudaErrorMemoryAllocation
        self.left -= size
        self.registered[address] = size
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        del self.registered[address]
        return 0


@pytest.mark.parametrize(("allowed", "pinned"), [(1 << 30, 40_960), (20_000, 16_384), (0, 0)])
def test_pages_are_pinned_piece_by_piece_as_far_as_the_system_allows(
    monkeypatch: pytest.MonkeyPatch, allowed: int, pinned: int
) -> None:
    runtime = Runtime(allowed)
    monkeypatch.setattr(accelerator, "_PIN_BYTES", 16_384)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)  # takes the refusal's error away
    device = object.__new__(AcceleratorDevice)
    device.torch_device, device._pinned = torch.device("cuda", 0), {}
    pages = allocate_pages(40_960)
    assert device.pin(pages) == pinned
    assert sum(runtime.registered.values()) == pinned
    device.unpin(pages)
    assert runtime.registered == {}
