"""The budget of a layer on an accelerator, counted without one: launches, waits, Python calls.

The device is staged: its memory is the host's, behind copies. The compiled programs are replaced by
ones that only count and check what they are given, so that triton is not needed.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine import experts as experts_package
from engine.config.settings import EngineConfig
from engine.device.base import Event
from engine.experts.encoding.codec import RecordFormat
from engine.experts.kernels.grouped import experts as grouped_experts
from engine.experts.kernels.grouped.launch import (
    GroupedFormat,
    LayerRows,
    launch_experts,
    launch_sum,
)
from engine.experts.kernels.triton_int4 import TritonInt4
from engine.layout.prequantized import MXFP4_GROUP, PrequantizedFormat, prequantized_layout
from engine.layout.record import Part, record_layout
from engine.native.values import Activation, Gate, GateForm
from engine.profile.experts import time_experts
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from engine.run.moe_layers import ExpertsRuntime
from tests.engine.families import save_tiny
from tests.fakes.staged_device import StagedDevice

_COPY_S = 0.003
PROGRAMS = "engine.experts.kernels.grouped.program"
VIEWS = {
    "prim::device",
    "empty",
    "new_empty",
    "view",
    "_unsafe_view",
    "slice",
    "select",
    "alias",
    "detach",
}
"""Operations of torch that queue no work: they make tensors or views."""
SAME = {"to", "contiguous"}
"""Operations that return their input where it is as it should be."""
READS = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__")
"""What makes the host wait when it is called on a tensor of an accelerator."""
ENGINE = Path(experts_package.__file__).parents[1]
COUNTED = (f"{ENGINE}/run/", f"{ENGINE}/experts/")
"""Whose Python calls are counted. Policies decide for each expert: theirs are not."""


@dataclass
class LayerCost:
    """What one call of ExpertsRuntime.experts took.

    programs: compiled ones that were launched; operations: of torch, without VIEWS; waits: of the
    host for the device; calls: of Python functions in COUNTED.
    """

    programs: list[str] = field(default_factory=list)
    operations: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    calls: int = 0


class HostTensors:
    """Tensors that lie on the host although the device's memory is the host's too."""

    def __init__(self) -> None:
        self._kept: dict[int, torch.Tensor] = {}  # kept, so that no address is used again

    def add(self, tensor: torch.Tensor) -> None:
        self._kept[tensor.untyped_storage().data_ptr()] = tensor

    def holds(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._kept


class NothingOnHost(HostTensors):
    """Where every tensor is the device's."""

    def holds(self, tensor: torch.Tensor) -> bool:
        return False


class CountedEvent:
    """An event of compute that is done; that the host waits for it is counted, not that a copy
    does, on a thread of its own."""

    def __init__(self, waits: list[str]) -> None:
        self._waits = waits

    def synchronize(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._waits.append("event")

    def query(self) -> bool:
        return True


class CountedDevice(StagedDevice):
    """A staged device that knows which tensors lie on the host, and counts who waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.host = HostTensors()
        self.cost = LayerCost()

    def allocate_staging(self, size_bytes: int) -> torch.Tensor:
        staging = super().allocate_staging(size_bytes)
        self.host.add(staging)
        return staging

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Event | None) -> Event:
        time.sleep(_COPY_S)  # so that records arrive one after the other
        return super().copy(target, source, after)

    def record(self) -> Event:
        return CountedEvent(self.cost.waits)

    def timestamp(self) -> Event:
        return CountedEvent(self.cost.waits)

    def synchronize(self) -> None:
        self.cost.waits.append("device")


class CountedProgram:
    """In place of a compiled program: checks its arguments, computes zeros."""

    def __init__(self, name: str, launched: list[str], out: int) -> None:
        self._name = name
        self._launched = launched
        self._out = out

    def __getitem__(self, grid: tuple[int, int]) -> Any:
        def launch(*arguments: Any, **constants: Any) -> None:
            tensors = [one for one in arguments if isinstance(one, torch.Tensor)]
            numbers = [one for one in arguments if not isinstance(one, torch.Tensor)]
            assert len({one.device for one in tensors}) == 1
            assert all(one.is_contiguous() for one in tensors)
            assert all(0 <= one < 1 << 31 for one in numbers)
            assert 0 < grid[0] < 1 << 31
            assert 0 < grid[1] < 1 << 16
            self._launched.append(self._name)
            if tensors[0].device.type == "cpu":
                out = arguments[self._out]
                ctypes.memset(out.data_ptr(), 0, out.nbytes)

        return launch


class CountedOperations(TorchDispatchMode):
    """Names the operations of torch that queue work on a device. What is computed of tensors on the
    host alone lies there too."""

    def __init__(self, names: list[str], host: HostTensors) -> None:
        super().__init__()
        self._names = names
        self._host = host

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if given and all(map(self._host.holds, given)):
            for one in tree_leaves(out):
                if isinstance(one, torch.Tensor):
                    self._host.add(one)
        elif name not in VIEWS and not (name in SAME and out is given[0]):
            self._names.append(name)
        return out


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the programs that were launched so far."""
    found: list[str] = []
    programs = SimpleNamespace(
        matrix_program=CountedProgram("matrix", found, 8),
        combine_program=CountedProgram("sum", found, 2),
    )
    monkeypatch.setitem(sys.modules, PROGRAMS, programs)  # type: ignore[arg-type]
    monkeypatch.setattr(TritonInt4, "unavailable", lambda self, device: None)
    monkeypatch.setattr(grouped_experts, "failed_self_test", lambda *given: None)
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Models that differ in how many experts a token has."""
    return {
        chosen: save_tiny(
            "qwen3_moe",
            tmp_path_factory.mktemp(f"of-{chosen}"),
            num_experts=16,
            num_experts_per_tok=chosen,
        )
        for chosen in (2, 8)
    }


def decoded_layers(
    folder: Path, cache: Path, launched: list[str], **settings: Any
) -> tuple[list[LayerCost], int]:
    """The cost of each layer of one decoded token after a prompt, and the misses it had."""
    device = CountedDevice()
    engine = Engine(folder, device, cache)
    base = {"precision.bits": 4, "kv.max_tokens": 256, "prefill.chunk_tokens": 64}
    engine.configure(EngineConfig().overlay({**base, **settings}))
    batch = MicroBatch(torch.arange(3, 99)[None])
    engine.prefill([batch])
    batch.tokens = torch.tensor([[5]])
    engine.forward([batch], "decode")
    engine.residency.reset_counters()
    with counted_layers(device, launched) as costs:
        batch.tokens = torch.tensor([[5]])
        engine.forward([batch], "decode")
    misses = engine.residency.counters.misses["decode"]
    assert len(costs) == engine.facts.moe_layers
    engine.close()
    return costs, misses


@contextmanager
def counted_layers(device: CountedDevice, launched: list[str]) -> Iterator[list[LayerCost]]:
    """Inside the block, the cost of every layer."""
    costs: list[LayerCost] = []
    compute = ExpertsRuntime.experts

    def experts(runtime: ExpertsRuntime, *given: torch.Tensor) -> torch.Tensor:
        cost = device.cost = LayerCost()
        costs.append(cost)
        launched.clear()

        def profile(frame: FrameType, event: str, _: object) -> None:
            if event == "call" and frame.f_code.co_filename.startswith(COUNTED):
                cost.calls += 1

        with CountedOperations(cost.operations, device.host):
            sys.setprofile(profile)
            try:
                out = compute(runtime, *given)
            finally:
                sys.setprofile(None)
        cost.programs, device.cost = list(launched), LayerCost()
        return out

    def watched(name: str) -> Any:
        method = getattr(torch.Tensor, name)

        def call(tensor: torch.Tensor, *given: Any, **named: Any) -> Any:
            on_main = threading.current_thread() is threading.main_thread()
            if on_main and not device.host.holds(tensor):
                device.cost.waits.append(name)
            return method(tensor, *given, **named)

        return call

    with ExitStack() as patches:
        for name in READS:
            patches.enter_context(mock.patch.object(torch.Tensor, name, watched(name)))
        patches.enter_context(mock.patch.object(ExpertsRuntime, "experts", experts))
        yield costs


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("chosen", [2, 8])
def test_a_layer_of_hits_takes_three_launches_one_upload_and_one_wait(
    chosen: int, bits: int, folders: dict[int, Path], launched: list[str], tmp_path: Path
) -> None:
    settings = {"cache.expert_bytes": "100%", "precision.bits": bits}
    costs, misses = decoded_layers(folders[chosen], tmp_path, launched, **settings)
    assert misses == 0
    for cost in costs:
        assert cost.programs == ["matrix", "matrix", "sum"]
        # the chosen experts to the host, the offsets of their records to the device
        assert cost.operations == ["copy_", "copy_"]
        assert cost.waits == ["event"]


def test_late_arrivals_take_one_more_pair_of_launches_and_no_wait(
    folders: dict[int, Path], launched: list[str], tmp_path: Path
) -> None:
    settings = {"cache.expert_bytes": "55%", "cache.eviction": "none"}
    costs, misses = decoded_layers(folders[8], tmp_path, launched, **settings)
    assert misses > 0
    for cost in costs:
        uploads = cost.operations.count("copy_") - 1  # the other one brings the chosen experts
        assert len(cost.programs) + uploads <= 8
        assert uploads <= 2
        assert cost.waits == ["event"]


def test_no_python_call_is_made_for_each_expert(
    folders: dict[int, Path], launched: list[str], tmp_path: Path
) -> None:
    settings = {"cache.expert_bytes": "100%"}
    few, _ = decoded_layers(folders[2], tmp_path, launched, **settings)
    many, _ = decoded_layers(folders[8], tmp_path, launched, **settings)
    assert [cost.calls for cost in few] == [cost.calls for cost in many]
    assert few[0].calls > 0


def test_inputs_of_policies_are_read_with_the_same_wait(
    folders: dict[int, Path], launched: list[str], tmp_path: Path
) -> None:
    settings = {
        "cache.expert_bytes": "100%",
        "placement.name": "host_below",
        "host.bytes": 10**9,
        "prefetch.predictor": "expert_map",
    }
    costs, _ = decoded_layers(folders[2], tmp_path, launched, **settings)
    for cost in costs:
        assert cost.waits == ["event"]
        assert cost.operations.count("copy_") > 2


def test_experts_that_are_launched_together_are_timed_so(
    folders: dict[int, Path],
    launched: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.profile.experts.EXPERT_TOKENS", (1, 4))
    engine = Engine(folders[2], CountedDevice(), tmp_path)
    engine.configure(EngineConfig().overlay({"precision.bits": 4, "kv.max_tokens": 64}))
    assert engine.live.grouped is not None
    launched.clear()
    found = time_experts(engine)
    engine.close()
    assert set(found) == {1, 4}
    assert all(seconds > 0 for seconds in found.values())
    assert launched.count("matrix") == 2 * launched.count("sum") > 0


MODELS = {
    "Qwen3-30B-A3B": (128, 8, 2048, 768, False),
    "gpt-oss-20b": (32, 4, 2880, 2880, True),
    "DeepSeek-V2-Lite": (64, 6, 2048, 1408, False),
}


@pytest.mark.parametrize("tokens", [1, 16, 17, 512])
@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("name", list(MODELS))
def test_published_sizes_stay_on_the_device(
    name: str, bits: int, tokens: int, launched: list[str]
) -> None:
    experts, chosen, hidden, width, is_published = MODELS[name]
    shapes = {"gate_up_proj": (2 * width, hidden), "down_proj": (hidden, width)}
    parts = [Part(part, shape) for part, shape in shapes.items()]
    gate = Gate(GateForm.PRODUCT, Activation.SILU, 0, 1.0, 0.0)
    if is_published:
        parts += [Part(f"{part}_bias", (shape[0],)) for part, shape in shapes.items()]
        gate = Gate(GateForm.CLAMPED_PLUS_ONE, 0, 1, 1.702, 7.0)
    published = PrequantizedFormat("mxfp4", 1, MXFP4_GROUP) if is_published and bits == 4 else None
    layout = record_layout(tuple(parts), bits, 64)
    if published is not None:
        layout = prequantized_layout(tuple(parts), published)
    record = RecordFormat(tuple(parts), layout, torch.bfloat16, "plain", published)
    format_ = GroupedFormat.of(record, gate, torch.bfloat16)
    assert format_ is not None
    operations: list[str] = []
    with FakeTensorMode(), CountedOperations(operations, NothingOnHost()):
        place = torch.device("cuda")
        index = torch.empty(tokens, chosen, dtype=torch.int64, device=place)
        arena = torch.empty(experts * record.size_bytes, dtype=torch.uint8, device=place)
        offsets = torch.empty(experts + 1, dtype=torch.int64, device=place)
        x = torch.empty(tokens, hidden, dtype=torch.bfloat16, device=place)
        out = torch.empty(tokens * chosen, hidden, dtype=torch.bfloat16, device=place)
        bounds = torch.empty(experts + 2, dtype=torch.int64, device=place)
        rows = LayerRows.of(index, bounds)
        launch_experts(format_, arena, offsets, x, rows, out)
        weights = torch.empty(tokens, chosen, dtype=torch.float32, device=place)
        found = launch_sum(out, weights)
    assert (found.shape, found.dtype, found.device.type) == (x.shape, x.dtype, "cuda")
    assert launched == ["matrix", "matrix", "sum"]
    assert operations == (["sort", "searchsorted"] if tokens * chosen > 128 else [])
