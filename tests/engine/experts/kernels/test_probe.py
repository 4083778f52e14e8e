"""Which kernels hold: shapes refused in words, self-tests remembered, fall-backs said in a line."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from engine.experts.encoding.codec import MatrixView, RecordFormat, encode, matrix_view
from engine.experts.kernels import probe
from engine.experts.kernels.grouped import probe as grouped_probe
from engine.experts.kernels.multiplier import Multiplier
from engine.experts.kernels.native import Native
from engine.experts.kernels.probe import first_refusal, probe_support, self_test
from engine.experts.kernels.registry import KERNELS, NO_KERNELS, KernelSupport
from engine.layout.record import Part, record_layout
from engine.native.values import Activation, Gate, GateForm
from engine.types import Bits
from tests.fakes.simulated_cards import Card, simulate
from tests.requirements import require_native

CPU = torch.device("cpu")


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Native, "unavailable", lambda self, device: f"it is off, not on {device}")


@pytest.mark.parametrize("bits", [16, 8, 4, 3, 2])
def test_the_native_kernel_is_preferred_and_spares_the_others_their_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: Bits
) -> None:
    require_native()
    monkeypatch.setattr(probe, "_test_in_child", lambda *arguments: pytest.fail("a child"))
    parts = (Part("gate_up", (40, 48)), Part("down", (48, 64)))  # shapes that torch's refuse
    assert probe_support(parts, bits, 16, torch.bfloat16, CPU, tmp_path).names == ("native",)


def test_a_kernel_that_is_asked_for_is_tried_though_another_is_preferred(tmp_path: Path) -> None:
    require_native()
    part = Part("w", (64, 64))
    found = probe_support((part,), 4, 32, torch.bfloat16, CPU, tmp_path, "torch_int4")
    assert found.names == ("native", "torch_int4")
    chosen = found.kernel_for(4, "torch_int4")
    assert chosen is not None
    assert chosen.name == "torch_int4"
    assert found.code_layout("torch_int4") == "torch_int4"


@pytest.mark.usefixtures("without_native")
def test_the_packed_kernels_of_this_processor_hold(tmp_path: Path) -> None:
    parts = (Part("gate_up", (128, 64)), Part("down", (64, 64)))
    four = probe_support(parts, 4, 32, torch.bfloat16, CPU, tmp_path)
    assert four.names == ("torch_int4",)
    assert probe_support(parts, 3, 32, torch.bfloat16, CPU, tmp_path) == four
    assert probe_support(parts, 8, 32, torch.bfloat16, CPU, tmp_path).names == ("torch_int8",)


@pytest.mark.usefixtures("without_native")
@pytest.mark.parametrize(
    ("rows", "columns", "group", "word"),
    [(40, 64, 32, "40 rows"), (64, 48, 16, "groups of 16"), (64, 80, 32, "80 columns")],
)
def test_a_shape_that_no_kernel_takes_is_said_in_one_line(
    rows: int,
    columns: int,
    group: int,
    word: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        found = probe_support(
            (Part("w", (rows, columns)),), 4, group, torch.bfloat16, CPU, tmp_path
        )
    assert found == NO_KERNELS
    assert len(caplog.records) == 1
    assert word in caplog.text


@pytest.mark.usefixtures("without_native")
def test_a_self_test_that_fails_or_crashes_is_remembered_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []

    def crash(kernel: str, *rest: object) -> tuple[str, bool]:
        calls.append(kernel)
        return "its self-test broke off (exit -11)", True

    monkeypatch.setattr(probe, "_test_in_child", crash)
    for _ in range(2):
        assert (
            probe_support((Part("w", (64, 64)),), 4, 32, torch.bfloat16, CPU, tmp_path)
            == NO_KERNELS
        )
    assert calls == ["torch_int4"]
    assert "broke off" in caplog.text


def test_a_kernel_that_computes_something_else_fails_its_self_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = KERNELS["torch_int4"]()
    assert self_test(kernel, [(64, 64)], 32, torch.bfloat16, CPU) is None

    def wrong(self: object, x: torch.Tensor, view: MatrixView, *rest: object) -> torch.Tensor:
        return torch.zeros(x.shape[0], view.part.rows, dtype=x.dtype)

    monkeypatch.setattr(KERNELS["torch_int4"], "product", wrong)
    failure = self_test(KERNELS["torch_int4"](), [(64, 64)], 32, torch.bfloat16, CPU)
    assert failure is not None
    assert "errs by 1" in failure


@pytest.mark.parametrize("name", list(KERNELS))
def test_every_kernel_says_where_it_runs_and_what_it_refuses(name: str) -> None:
    if name == "native":
        require_native()
    kernel = KERNELS[name]()
    assert kernel.name == name
    for device in ("cpu", "cuda", "meta"):
        if device == "cuda" and not torch.cuda.is_available():
            continue
        reason = kernel.unavailable(torch.device(device))
        assert reason is None or device in reason
    assert kernel.unavailable(torch.device("meta"))
    assert first_refusal(kernel, [(1024, 1024)], 64, torch.bfloat16) is None
    assert first_refusal(kernel, [(1024, 1024), (1001, 1001)], 64, torch.bfloat16)


def test_a_kernel_asked_for_by_name_is_taken_or_dequantized_never_replaced() -> None:
    held = KernelSupport(("torch_int4", "torch_int8"))
    chosen = held.kernel_for(4, "torch_int4")
    assert chosen is not None
    assert chosen.name == "torch_int4"
    assert held.kernel_for(4, "cuda_int4") is None
    assert held.kernel_for(4, "dequantize") is None
    eight = held.kernel_for(8, "torch_int4")  # says nothing of 8 bits
    assert eight is not None
    assert eight.name == "torch_int8"
    assert held.readable_by_host() == KernelSupport(("torch_int8",))


@pytest.mark.usefixtures("without_native")
@pytest.mark.parametrize(
    ("code", "remembered"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", True),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", False),  # as the kernel does
        ("raise MemoryError", False),
        ("raise RuntimeError('[enforce fail] can not allocate memory')", False),
        ("import time; time.sleep(60)", False),
        ("raise RuntimeError('unsupported shape')", True),
    ],
)
def test_what_another_day_may_not_repeat_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, remembered: bool
) -> None:
    run = probe.subprocess.run

    def child(command: list[str], **options: object) -> object:
        return run([command[0], "-c", code], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(probe.subprocess, "run", child)
    monkeypatch.setattr(probe, "_PATIENCE_S", 2)
    found = probe_support((Part("w", (64, 64)),), 4, 32, torch.bfloat16, CPU, tmp_path)
    assert "self-test" in found.refusals["torch_int4"]
    assert bool(list(tmp_path.rglob("*.json"))) is remembered


@pytest.mark.parametrize("name", ["torch_int4", "torch_int8"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rows_that_lie_apart_are_multiplied_as_if_they_lay_together(
    name: str, dtype: torch.dtype
) -> None:
    # the last token of each sequence of a batch, as the head gets it: [B, S, K][:, -1]
    part = Part("weight", (64, 64))
    kernel = KERNELS[name]()
    record = RecordFormat(
        (part,), record_layout((part,), kernel.reads[0], 32), torch.bfloat16, kernel.code_layout
    )
    view = matrix_view(encode({"weight": torch.randn(64, 64)}, record), record, part)
    multiply = Multiplier(kernel.reads[0], 32, kernel.code_layout, KernelSupport((name,)), "auto")
    x = torch.randn(3, 5, 64).to(dtype)[:, -1]
    assert not x.is_contiguous()
    assert torch.equal(multiply(x, view), multiply(x.contiguous(), view))
    assert multiply(x, view).dtype == dtype


def test_a_product_of_another_dtype_is_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    product = KERNELS["torch_int8"]().product

    def wide(self: object, *arguments: object) -> torch.Tensor:
        return product(*arguments).float()  # type: ignore[arg-type]

    monkeypatch.setattr(KERNELS["torch_int8"], "product", wide)
    assert self_test(KERNELS["torch_int8"](), [(64, 64)], 32, torch.bfloat16, CPU) is None


@pytest.mark.usefixtures("without_native")
def test_refusals_are_kept_with_their_reasons(tmp_path: Path) -> None:
    found = probe_support((Part("w", (40, 64)),), 4, 32, torch.bfloat16, CPU, tmp_path)
    assert found.refusals["cuda_int4"] == "it runs on CUDA, not on cpu"
    assert found.refusals["torch_int4"] == "40 rows are no multiple of 16"
    assert found.refusals["torch_int8"] == "it reads codes of 8 bits, not of 4"


GATE = Gate(GateForm.PRODUCT, Activation.SILU, 0, 1.0, 0.0)
CHILDREN: list[tuple[ModuleType, list[Any]]] = [
    (probe, ["triton_int4", [[8, 64]], 32, "bfloat16", "cuda:1"]),
    (
        grouped_probe,
        grouped_probe._described(
            grouped_probe.tiny_record(4, group=32), GATE, torch.bfloat16, torch.device("cuda:1")
        ),
    ),
]


@pytest.mark.parametrize(("module", "arguments"), CHILDREN)
def test_a_self_test_runs_on_the_card_that_it_is_for(
    module: ModuleType, arguments: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = simulate(monkeypatch, Card("aaa"), Card("bbb"))
    present: list[int] = []
    monkeypatch.setattr(module, "self_test", lambda *_: present.append(machine.present))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(sys, "argv", ["probe", json.dumps(arguments)])
    assert module._main() == 0
    assert present == [1], "kernels are launched on a thread's own card"
