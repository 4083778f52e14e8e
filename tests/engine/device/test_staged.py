"""The accelerator's path (staging, copies, host tier) gives the same bits as the CPU's."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from engine.config.settings import EngineConfig
from engine.device.accelerator import AcceleratorDevice
from engine.device.base import Device, Event
from engine.device.cpu import CpuDevice
from engine.device.registry import open_device
from engine.errors import InfeasibleError, UsageError
from engine.experts.encoding.codec import CodeLayout, RecordFormat
from engine.facts.card_memory import CONTEXT_BYTES
from engine.layout.record import Part, record_layout
from engine.run.configuration import host_supports
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from engine.types import Bits
from tests.fakes.staged_device import StagedDevice
from tests.requirements import require_native

PROMPT = torch.arange(3, 30)[None]


def logits(folder: Path, cache: Path, device: Device, **settings: object) -> torch.Tensor:
    engine = Engine(folder, device, cache)
    engine.configure(
        EngineConfig().overlay(
            {"cache.expert_bytes": "40%", "kv.max_tokens": 64, "prefill.chunk_tokens": 9} | settings
        )
    )
    batch = MicroBatch(PROMPT)
    rows = [engine.prefill([batch])[0]]
    for token in (5, 9, 5):
        batch.tokens = torch.tensor([[token]])
        rows.append(engine.forward([batch], "decode")[0])
    out = torch.cat(rows, dim=1).cpu().clone()
    engine.close()
    return out


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("host_bytes", [0, 100_000, "50%", "auto"])
def test_staged_copies_and_the_host_tier_change_no_bit(
    tiny_folder: Path, tmp_path: Path, bits: int, host_bytes: int | str
) -> None:
    common = {"precision.bits": bits, "kernel.name": "dequantize"}
    expected = logits(tiny_folder, tmp_path, CpuDevice(), **common)
    device = StagedDevice()
    device.name = "staged:0"  # no memory of the host's
    own = logits(tiny_folder, tmp_path, device, **common, **{"host.bytes": host_bytes})
    assert torch.equal(own, expected)
    assert device.copied_bytes > 0


def test_a_host_tier_that_holds_all_is_read_from_memory_the_second_time(
    tiny_folder: Path, tmp_path: Path
) -> None:
    from engine.experts.tiers.host import HostTier

    engine = Engine(tiny_folder, StagedDevice(), tmp_path)
    engine.configure(
        EngineConfig().overlay({"cache.eviction": "none", "host.bytes": 10**9, "kv.max_tokens": 64})
    )
    tier = engine.transfers.sources[16]
    assert isinstance(tier, HostTier)
    engine.prefill([MicroBatch(PROMPT)])
    misses = tier.misses
    engine.prefill([MicroBatch(PROMPT)])
    assert tier.misses == misses
    assert tier.hits > 0
    engine.close()


def test_compute_waits_for_a_copy_once_and_not_at_each_hit(
    tiny_folder: Path, tmp_path: Path
) -> None:
    class WaitedDevice(StagedDevice):
        """Counts how often compute waits for a copy."""

        waits = 0

        def wait(self, event: Event) -> None:
            self.waits += 1
            super().wait(event)

    device = WaitedDevice()
    device.name = "staged:0"  # no memory of the host's: a record of its tier is one copy
    engine = Engine(tiny_folder, device, tmp_path)
    engine.configure(EngineConfig().overlay({"cache.expert_bytes": "100%", "kv.max_tokens": 64}))
    batch = MicroBatch(PROMPT)
    engine.prefill([batch])
    counters = engine.residency.counters
    for _ in range(3):
        batch.tokens = torch.tensor([[5]])
        engine.forward([batch], "decode")
    assert counters.hits["decode"] > 0
    assert 0 < device.waits <= counters.misses["prefill"] + counters.misses["decode"]
    engine.close()


def test_beside_a_card_the_host_multiplies_records_as_they_lie() -> None:
    require_native()
    parts = (Part("gate_up_proj", (64, 64)), Part("down_proj", (64, 32)))
    layouts: dict[Bits, CodeLayout] = {4: "plain", 3: "cuda_int4"}
    records = {
        bits: RecordFormat(parts, record_layout(parts, bits, 32), torch.bfloat16, codes)
        for bits, codes in layouts.items()
    }
    supports = host_supports(records)
    assert supports[4].names == ("native",)
    assert supports[3].names == ()


def test_whoever_configures_takes_the_device_first(tiny_folder: Path, tmp_path: Path) -> None:
    bound: set[int] = set()

    class OwnDevice(StagedDevice):
        """Belongs to the threads that took it, as a card that is not the first one does."""

        def bind_thread(self) -> None:
            bound.add(threading.get_ident())

        def pin(self, pages: torch.Tensor) -> int:
            assert threading.get_ident() in bound
            return super().pin(pages)

        def allocate_arena(self, size_bytes: int) -> torch.Tensor:
            assert threading.get_ident() in bound
            return super().allocate_arena(size_bytes)

    device = OwnDevice()
    device.name = "staged:0"  # no memory of the host's, so that there is a host tier to pin
    engine = Engine(tiny_folder, device, tmp_path)
    with ThreadPoolExecutor(1) as thread:
        thread.submit(engine.configure, EngineConfig().overlay({"kv.max_tokens": 64})).result()
    assert engine.live.tiers
    engine.close()


def test_the_memory_equation_counts_what_the_driver_took(tiny_folder: Path, tmp_path: Path) -> None:
    def total_bytes(context_bytes: int | None) -> int:
        device = StagedDevice()
        device.name, device.context_bytes = "staged:0", context_bytes
        engine = Engine(tiny_folder, device, tmp_path)
        _, memory = engine.configure(EngineConfig().overlay({"kv.max_tokens": 64}))
        engine.close()
        return memory.total_bytes

    assert total_bytes(None) - total_bytes(96_000_000) == CONTEXT_BYTES - 96_000_000


def test_host_bytes_beyond_the_ram_budget_do_not_fit(tiny_folder: Path, tmp_path: Path) -> None:
    engine = Engine(tiny_folder, CpuDevice(), tmp_path)
    with pytest.raises(InfeasibleError, match="--ram"):
        engine.configure(EngineConfig().overlay({"host.bytes": "2GB", "budget.ram_bytes": "1GB"}))
    engine.close()


@pytest.mark.parametrize("name", ["cuda:0", "nonsense", "xpu:7"])
def test_a_device_that_is_not_here_is_refused_with_what_is(name: str) -> None:
    if torch.accelerator.is_available() and name.startswith(
        str(torch.accelerator.current_accelerator())
    ):
        pytest.skip("this machine has that device")
    with pytest.raises(UsageError, match=r"no (such )?device|knows no device"):
        open_device(name)


@pytest.mark.gpu
@pytest.mark.parametrize(("kernel", "error"), [("dequantize", 1e-3), ("auto", 1e-2)])
@pytest.mark.parametrize("bits", [16, 8, 4, 2])
def test_an_accelerator_agrees_with_the_cpu(
    tiny_folder: Path, tmp_path: Path, bits: int, kernel: str, error: float
) -> None:
    current = torch.accelerator.current_accelerator()
    assert current is not None, "this test needs an accelerator"
    settings = {
        "precision.bits": bits,
        "compute.dtype": "float32",
        "kernel.name": kernel,
        "host.bytes": 50_000,
        "prefetch.predictor": "next_gate",
        "prefetch.depth": 1,
    }
    expected = logits(tiny_folder, tmp_path, CpuDevice(), **settings)
    own = logits(tiny_folder, tmp_path, AcceleratorDevice(str(current)), **settings)
    assert (own - expected).abs().max() <= error * expected.abs().max()
