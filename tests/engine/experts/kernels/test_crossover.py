"""The crossover between the packed product and dequantizing: measured, kept, taken up, used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.config.settings import EngineConfig
from engine.device.cpu import CpuDevice
from engine.experts.encoding.codec import MatrixView, RecordFormat, encode, matrix_view
from engine.experts.kernels.crossover import (
    SMALL_PRODUCT,
    keep_crossovers,
    known_crossovers,
    native_crossover,
)
from engine.experts.kernels.multiplier import CROSSOVER_TOKENS, Multiplier
from engine.experts.kernels.registry import NO_KERNELS, KernelSupport
from engine.layout.record import Part, record_layout
from engine.profile import machine
from engine.run.engine import Engine

CPU, CARD = torch.device("cpu"), torch.device("cuda", 0)


def test_a_config_takes_the_crossover_that_was_measured_here(engine: Engine) -> None:
    quantized = EngineConfig().overlay({"precision.bits": 4})

    def most_tokens(config: EngineConfig) -> int:
        engine.configure(config)
        return engine.live.runtime._multipliers[4]._crossover  # type: ignore[attr-defined,no-any-return]

    assert known_crossovers(engine.cache_folder, CPU) == CROSSOVER_TOKENS
    large = max(CROSSOVER_TOKENS[4], most_tokens(quantized)) + 1
    keep_crossovers(engine.cache_folder, {"4": large}, CPU)
    assert known_crossovers(engine.cache_folder, CPU) == {**CROSSOVER_TOKENS, 4: large}
    assert most_tokens(quantized) == large
    assert most_tokens(quantized.overlay({"kernel.crossover_tokens": 3})) == 3


def test_a_card_has_crossovers_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {0: "one card", 1: "another card"}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[device.index])
    keep_crossovers(tmp_path, {"4": 99, "4a8": 77}, CPU)
    assert known_crossovers(tmp_path, CARD) == CROSSOVER_TOKENS
    keep_crossovers(tmp_path, {"4": 7}, CARD)
    assert known_crossovers(tmp_path, CPU)[4] == 99
    assert known_crossovers(tmp_path, CPU, 8)[4] == 77
    assert known_crossovers(tmp_path, CARD)[4] == 7
    assert known_crossovers(tmp_path, torch.device("cuda", 1)) == CROSSOVER_TOKENS


def test_small_matrices_stay_with_the_native_products_for_more_tokens() -> None:
    small, large = Part("w", (128, 128)), Part("w", (2048, 2048))
    assert native_crossover(8, (small,)) == SMALL_PRODUCT // (128 * 128)
    assert native_crossover(8, (small, large, Part("b", (9,)))) == 8


def test_more_tokens_than_the_crossover_are_dequantized(monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part("weight", (64, 64))
    record = RecordFormat((part,), record_layout((part,), 8, 64), torch.bfloat16, "plain")
    view = matrix_view(encode({"weight": torch.randn(64, 64)}, record), record, part)
    multiply = Multiplier(8, 64, "plain", KernelSupport(("torch_int8",)), "auto", crossover=4)
    dequantized: list[int] = []
    plain = Multiplier.dequantized

    def note(self: Multiplier, view: MatrixView) -> torch.Tensor:
        dequantized.append(1)
        return plain(self, view)

    monkeypatch.setattr(Multiplier, "dequantized", note)
    multiply(torch.randn(4, 64).bfloat16(), view)
    assert not dequantized
    multiply(torch.randn(5, 64).bfloat16(), view)
    assert dequantized


def test_the_profile_finds_where_the_faster_product_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = iter([1.0, 2.0, 1.0, 2.0, 3.0, 2.0])  # packed, plain; at 1, 2 and 4 tokens
    monkeypatch.setattr(machine, "_best", lambda run: next(times))
    assert machine._crossovers(CpuDevice(), KernelSupport(("torch_int8",))) == {"8": 2}
    assert machine._crossovers(CpuDevice(), NO_KERNELS) == {}


class AccountingDevice(CpuDevice):
    """A device with memory of its own, whose work is done when somebody waits for it."""

    is_host_memory = False
    waits = 0

    def synchronize(self) -> None:
        self.waits += 1


def test_the_profile_measures_the_device_and_waits_for_its_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = AccountingDevice()
    monkeypatch.setattr(machine, "_CROSSOVER_TOKENS", (1,))
    monkeypatch.setattr(machine, "_best", lambda run: run() or 1.0)
    assert machine._crossovers(device, KernelSupport(("torch_int8",))) == {"8": 1}
    assert device.waits == 2, "the packed product and the plain one"
