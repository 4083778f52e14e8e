"""A machine is profiled with the device that was asked for, and with the processor beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.device.base import Device
from engine.profile import machine
from engine.worker import operations
from engine.worker.operations import Operations


class EnoughError(Exception):
    """The device is known."""


@pytest.mark.parametrize("name", ["cpu", "emulated:laptop_8gb"])
def test_the_device_that_is_asked_for_is_measured(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def measure(device: Device, *_: Any) -> None:
        measured.append(device.name)
        raise EnoughError

    monkeypatch.setattr(operations, "profile_machine", measure)
    monkeypatch.setattr(operations, "probe_support", lambda *_: operations.KernelSupport())
    with pytest.raises(EnoughError):
        Operations(tmp_path, lambda event: None).profile(name)
    assert measured == [name]


def test_the_processor_beside_a_device_is_timed_at_every_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "_best", lambda run: run() or 0.002)
    large, small = machine._host_times()
    assert large.keys() == small.keys()
    assert {f"{bits}/{tokens}" for bits in (16, 4) for tokens in (1, 256)} <= large.keys()
    assert set(large.values()) == {2.0}
