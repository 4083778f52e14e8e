"""Cards whose driver answers oddly, and CUDA's numbers for them."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.facts import cards
from engine.facts.cards import cuda_order, read_cards

TWO = (["card", "card"], ["GPU-0a11", "GPU-1b22"])
PCI = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A driver that supports nothing but what a test puts in: values, or exceptions to raise."""
    answers: dict[str, Any] = {"nvmlInit": None, "nvmlShutdown": None, "nvmlDeviceGetCount": 1}
    answers["nvmlDeviceGetHandleByIndex"] = 0

    def answer(name: str) -> Any:
        def call(*_: Any) -> Any:
            found = answers.get(name, pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED))
            if isinstance(found, Exception):
                raise found
            return found

        return call

    for name in [one for one in dir(pynvml) if one.startswith("nvml")]:
        monkeypatch.setattr(cards.pynvml, name, answer(name))
    return answers


def garbled() -> UnicodeDecodeError:
    try:
        b"\xf8\xff".decode()
    except UnicodeDecodeError as error:
        return error
    raise AssertionError


def test_a_driver_under_wsl_that_garbles_its_name_still_has_a_card(nvml: dict[str, Any]) -> None:
    # wookayin/gpustat#170, XuehaiPan/nvitop#127: bytes that are no text
    nvml["nvmlDeviceGetName"] = garbled()
    nvml["nvmlDeviceGetMemoryInfo"] = SimpleNamespace(total=8 << 30, free=6 << 30)
    driver, (card,) = read_cards()
    assert driver is None
    assert (card.name, card.total_bytes, card.free_bytes) == ("unnamed GPU", 8 << 30, 6 << 30)
    assert card.power_w is card.pcie_width is card.clock_mhz is card.process_bytes is None


@pytest.mark.parametrize(
    ("name", "value", "field", "shown"),
    [
        ("nvmlDeviceGetName", b"RTX \xff 4090\x00", "name", "RTX  4090"),
        ("nvmlDeviceGetName", "", "name", "unnamed GPU"),
        ("nvmlDeviceGetUUID", b"GPU-1", "uuid", "GPU-1"),
        ("nvmlDeviceGetPowerUsage", 2**32 - 1, "power_w", None),
        ("nvmlDeviceGetPowerUsage", "75 W", "power_w", None),
        ("nvmlDeviceGetCurrPcieLinkWidth", 2**32 - 1, "pcie_width", None),
        ("nvmlDeviceGetMemoryInfo", SimpleNamespace(total=2**64 - 1, free=5), "total_bytes", None),
        ("nvmlDeviceGetMemoryInfo", SimpleNamespace(total=0, free=0), "free_bytes", None),
        ("nvmlDeviceGetMemoryInfo", SimpleNamespace(total=5, free=9), "free_bytes", None),
        ("nvmlDeviceGetMemoryInfo", None, "total_bytes", None),
        ("nvmlDeviceGetComputeRunningProcesses", "x", "process_bytes", None),
        ("nvmlDeviceGetComputeRunningProcesses", [], "process_bytes", 0),
        ("nvmlDeviceGetComputeRunningProcesses",
         [SimpleNamespace(pid=os.getpid(), usedGpuMemory=2**64 - 1)], "process_bytes", None),
    ],
)  # fmt: skip
def test_garbage_is_none(
    nvml: dict[str, Any], name: str, value: object, field: str, shown: object
) -> None:
    nvml[name] = value
    assert getattr(read_cards()[1][0], field) == shown


@pytest.mark.parametrize("name", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex"])
@pytest.mark.parametrize(
    "error",
    [pynvml.NVMLError(999), OSError("no library"), garbled(), RuntimeError(), KeyError()],
)
def test_a_driver_that_fails_has_no_cards(
    nvml: dict[str, Any], name: str, error: Exception
) -> None:
    nvml[name] = error
    assert read_cards()[1] == ()


def test_a_driver_without_a_function_is_one_that_does_not_report(
    nvml: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(cards.pynvml, "nvmlDeviceGetUUID")
    assert read_cards()[1][0].uuid is None


@pytest.mark.parametrize(
    ("visible", "order"),
    [
        (None, [0, 1]),
        ("1", [1]),  # gpuopenanalytics/pynvml#28: cuda:0 is NVML's second card
        ("1,0", [1, 0]),
        (" 1 , 0 ", [1, 0]),
        ("GPU-1b22,GPU-0a11", [1, 0]),
        ("GPU-1b", [1]),
        ("GPU-", []),  # not unique
        ("", []),
        ("-1", []),
        ("1,-1,0", [1]),
        ("0,5,1", [0]),
        ("NoDevFiles", []),
        ("MIG-GPU-0a11/1/0", [None]),
    ],
)
def test_cuda_numbers_follow_the_visible_devices(visible: str | None, order: list[int]) -> None:
    environment = PCI if visible is None else {**PCI, "CUDA_VISIBLE_DEVICES": visible}
    assert cuda_order(*TWO, environment) == order


def test_the_number_of_different_cards_is_known_in_bus_order_only() -> None:
    different = (["slow", "fast"], TWO[1])
    assert cuda_order(*different, {}) == [None, None]  # the fastest first
    assert cuda_order(*different, {"CUDA_VISIBLE_DEVICES": "1"}) == [None]
    assert cuda_order(*different, {"CUDA_VISIBLE_DEVICES": "GPU-0a11"}) == [0]
    assert cuda_order(*different, PCI) == [0, 1]
    assert cuda_order(*TWO, {}) == [0, 1]


@given(st.text())
def test_whatever_the_variable_holds_is_taken(text: str) -> None:
    assert set(cuda_order(*TWO, {**PCI, "CUDA_VISIBLE_DEVICES": text})) <= {0, 1, None}
