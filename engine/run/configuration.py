"""The live parts of one configuration: stores, tiers, slots, transfers, policy, runtime.

Built by the engine at configure and closed as a whole; none of them outlives the configuration.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from concurrent.futures import Future as Pending
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from engine.config.choices import KERNEL_WORDS
from engine.config.settings import EngineConfig
from engine.device.base import Device
from engine.device.emulated import EmulatedDevice
from engine.experts.encoding.codec import RecordFormat
from engine.experts.host_compute import HostCompute
from engine.experts.kernels.crossover import Crossovers, known_crossovers, native_crossover
from engine.experts.kernels.fused import FusedExperts
from engine.experts.kernels.grouped.experts import GroupedExperts
from engine.experts.kernels.multiplier import Multiplier, Product
from engine.experts.kernels.native_experts import NativeExperts
from engine.experts.kernels.prequantized import PrequantizedMultiplier
from engine.experts.kernels.registry import KERNELS, NO_KERNELS, KernelSupport
from engine.experts.ready_records import ReadyRecords
from engine.experts.residency import Residency
from engine.experts.slots import Slots
from engine.experts.tiers.disk import ExpertStore
from engine.experts.tiers.host_tiers import HostTiers, Progress
from engine.experts.transfer import Source, TransferEngine
from engine.facts.model import ModelFacts
from engine.kv_cache.cache import KvCaches
from engine.memory.host import host_shares
from engine.memory.plan import MemoryPlan
from engine.memory.records import all_records_bytes
from engine.model.gates import GateStack
from engine.model.hook import attach, detach
from engine.model.loader import LoadedModel
from engine.model.non_expert import can_keep_embeddings_on_host
from engine.native import library
from engine.policy.context import PolicyContext
from engine.policy.future import Future
from engine.policy.learned import load_history, load_learned
from engine.policy.registry import ORDERS, QUEUES, build_policy, build_pools
from engine.run.captured_pass import CapturedPass, eager_reason
from engine.run.host_rates import with_measured_rates
from engine.run.moe_layers import ExpertsRuntime, expert_output
from engine.run.time_split import PhaseClock
from engine.types import Bits


class LiveConfiguration:
    """Everything that one resolved config needs beside the non-expert weights.

    stores: the disk tier by bits (closed with this object); supports: kernels by bits; host_tiers:
    the engine's, which outlive the configuration; progress: of filling them. grouped: launches of
    all experts of a layer, if there are such.
    """

    def __init__(
        self,
        model: LoadedModel,
        facts: ModelFacts,
        device: Device,
        config: EngineConfig,
        memory: MemoryPlan,
        stores: Mapping[Bits, ExpertStore],
        supports: Mapping[Bits, KernelSupport],
        host_tiers: HostTiers,
        clock: PhaseClock,
        cache_folder: Path,
        progress: Progress | None = None,
    ) -> None:
        self.config = config
        self.memory = memory
        self.stores = dict(stores)
        self._model = model
        self._supports = dict(supports)
        self._device = device
        self._clock = clock
        self._threads: ThreadPoolExecutor | None = None
        with ExitStack() as opened:
            for store in self.stores.values():
                opened.callback(store.close)
            self.tiers = host_tiers.open(
                self.stores,
                host_shares(all_records_bytes(config, facts), int(config.host.bytes)),
                is_granted=bool(config.budget.ram_bytes),
                threads=config.io.threads,
                progress=progress,
            )
            self._tier_notes = host_tiers.notes
            self._open(facts, supports, cache_folder, opened)
            # a failure before this line closes everything that was opened
            self._opened = opened.pop_all()

    def _open(
        self,
        facts: ModelFacts,
        supports: Mapping[Bits, KernelSupport],
        cache_folder: Path,
        opened: ExitStack,
    ) -> None:
        config, memory, device, model = self.config, self.memory, self._device, self._model
        opened.callback(gc.collect)  # views of the arena may be in reference cycles
        records = {bits: store.record for bits, store in self.stores.items()}
        wanted = config.compute.capture
        self._eager_reason = eager_reason(model.model, device, config) if wanted else None
        capturer = device.capturer if wanted and self._eager_reason is None else None
        self.kv = KvCaches(model.model, device, config.kv, static=capturer is not None)
        opened.callback(self.kv.close)
        future = Future(facts.moe_layers)
        history, learned = load_history(config), load_learned(config, facts, cache_folder)
        context = PolicyContext(config, facts, future, history, learned, self._submit)
        slots = memory.slots_by_bits or memory.slots + memory.elastic_slots
        self.slots = Slots(device, records, build_pools(context, slots))
        opened.callback(self.slots.close)
        opened.callback(self._stop_predictions)
        sources: dict[Bits, Source] = {**self.stores, **self.tiers}
        self.transfers = TransferEngine(
            self.slots,
            sources,
            QUEUES[config.transfer.queue](),
            threads=config.io.threads,
            chunk_bytes=config.transfer.chunk_bytes,
            in_flight=config.transfer.in_flight,
        )
        opened.callback(self.transfers.close)
        on_cpu, cpu = device.torch_device.type == "cpu", torch.device("cpu")
        products = config if on_cpu else config.overlay({"precision.activation_bits": 16})
        rounding = products.precision.activation_bits
        crossovers = known_crossovers(cache_folder, device.torch_device, rounding)
        multipliers = {
            bits: multiplier_of(products, records[bits], supports[bits], crossovers)
            for bits in records
        }
        on_host = supports if on_cpu else host_supports(records)
        of_host = known_crossovers(cache_folder, cpu, rounding)
        self.host = self._open_host(records, on_host, of_host)
        self.grouped = GroupedExperts.of(model, config, records, self.slots, cache_folder)
        fused: FusedExperts | None = self.grouped or NativeExperts.of(
            model, products, records, supports, crossovers
        )
        if self.host is not None:
            opened.callback(self.host.close)
        if self.host is not None:
            config = self.config = with_measured_rates(
                config, self.host, self.transfers, self.slots.count, model
            )
            context = replace(context, config=config)
        self.policy = build_policy(
            context, slots, host_compute=self.host is not None, elastic=memory.elastic_slots
        )
        self.residency = Residency(
            self.policy,
            self.slots,
            self.transfers,
            ORDERS[config.batch.order](),
            self._on_wait,
            self._ready_records(),
        )
        if memory.elastic_slots:
            self._release_elastic()
        gates = GateStack(model, max(1, config.prefetch.depth), facts.experts_per_token)
        self.runtime = ExpertsRuntime(
            model, self.residency, multipliers, gates, self._clock, self.host, fused
        )
        handles: list[Any] = list(attach(model, self.runtime))
        opened.callback(detach, model, handles)
        self.captured = None if capturer is None else CapturedPass(model, self.runtime, capturer)

    def open_elastic(self, fraction: float) -> None:
        """Between two passes: give this fraction of the KV memory to elastic expert slots (0 to
        1)."""
        self.residency.open_elastic(fraction)

    @property
    def store(self) -> ExpertStore:
        """The disk tier of the run's own precision."""
        return self.stores[self.config.precision.bits]

    @property
    def inactive(self) -> tuple[str, ...]:
        """Settings of this config whose mechanism has no effect here, each with its reason."""
        found = []
        if self.config.placement.name != "device" and self.host is None:
            found.append(
                f"placement.name = {self.config.placement.name}: inactive, device and host are one "
                "memory here"
                if self._device.is_host_memory
                else f"placement.name = {self.config.placement.name}: inactive, the host tier has "
                "no capacity for records"
            )
        if self.config.placement.embeddings == "host":
            if self._device.torch_device.type == "cpu":
                found.append(
                    "placement.embeddings = host: inactive, the device is host memory here"
                )
            elif not can_keep_embeddings_on_host(self._model.model):
                found.append(
                    "placement.embeddings = host: inactive, this model's head is the same tensor"
                )
        if self.config.kv.placement == "host" and self.kv.link is None:
            found.append(
                "kv.placement = host: inactive, the device is host memory itself"
                if self._device.is_host_memory
                else "kv.placement = host: inactive, no layer of this model keeps plain keys and "
                "values"
            )
        eager = self._eager_reason if self.captured is None else self.captured.eager_reason
        if eager is not None:
            found.append(f"compute.capture = true: inactive, {eager}")
        if self.config.host.bytes and not self.tiers:
            found.append(
                "host.bytes: inactive, the device is host memory itself"
                if self._device.is_host_memory
                else "host.bytes: inactive, it holds too few records"
            )
        if self.config.cache.allocation != "uniform" and self.policy.cache.shared:
            found.append(
                f"cache.allocation = {self.config.cache.allocation}: inactive, all layers "
                "share their slots"
            )
        if self.config.precision.activation_bits == 8 and self._device.torch_device.type != "cpu":
            found.append(
                "precision.activation_bits = 8: inactive, only products on the CPU round what they "
                "multiply"
            )
        return (*found, *self._inactive_kernel())

    def _inactive_kernel(self) -> Iterator[str]:
        """A kernel that was asked for by name and multiplies nothing here."""
        name = self.config.kernel.name
        if name in KERNEL_WORDS or self.config.precision.non_expert_bits in KERNELS[name]().reads:
            return  # the non-expert weights may use it
        if any(name in support.names for support in self._supports.values()):
            return
        coded = [support for bits, support in self._supports.items() if bits != 16]
        reasons = [support.refusals[name] for support in coded if name in support.refusals]
        why = reasons[0] if reasons else "nothing here is stored as codes that it reads"
        yield f"kernel.name = {name}: inactive, {why}"

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes that are needed to interpret this configuration's metrics."""
        return (*self.policy.notes, *self.kv.notes, *self._tier_notes)

    @property
    def disk_bytes(self) -> int:
        """Bytes read from the disk since configure."""
        return sum(store.bytes_read for store in self.stores.values())

    @property
    def host_tier_bytes(self) -> int:
        """Bytes held by the host tier, plus the peak of keys and values on the host."""
        records = sum(tier.count * tier.record.size_bytes for tier in self.tiers.values())
        return records + (self.kv.link.peak_host_bytes if self.kv.link else 0)

    def close(self) -> None:
        """Stop threads, free slots and tiers, close files."""
        self._opened.close()

    def _ready_records(self) -> ReadyRecords | None:
        """The table of records that a native pass reads unasked; None if the policy is asked before
        each layer."""
        alone = self._device.is_host_memory and len(self.stores) == 1 and self.policy.only_follows
        layers = self._model.layers
        return ReadyRecords(len(layers), max(one.count for one in layers)) if alone else None

    def _release_elastic(self) -> None:
        """Close all elastic slots; opening them once touches their memory."""
        cache = self.policy.cache
        cache.open_elastic(1.0)
        self.residency.open_elastic(0.0)

    def _stop_predictions(self) -> None:
        if self._threads is not None:
            self._threads.shutdown()

    def _open_host(
        self,
        records: Mapping[Bits, RecordFormat],
        supports: Mapping[Bits, KernelSupport],
        crossovers: Crossovers,
    ) -> HostCompute | None:
        """Host compute, only if host and device are two memories, the host holds records, and an
        expert needs nothing else that lies on the device."""
        elsewhere = any(layer.experts.has_post_expert_norm for layer in self._model.layers)
        wanted = self.config.placement.name != "device"
        if not wanted or elsewhere or set(self.tiers) != set(self.stores):
            return None
        rate = None
        if isinstance(self._device, EmulatedDevice):
            rate = self._device.machine.slowed_host_bytes_per_s
        config = self.config
        if self._device.torch_device.type != "cpu":  # what is asked for by name is the device's
            config = config.overlay({"kernel.name": "auto", "precision.activation_bits": 16})
        multipliers = {
            bits: multiplier_of(config, record, supports[bits], crossovers)
            for bits, record in records.items()
        }
        fused = NativeExperts.of(self._model, config, records, supports, crossovers)
        return HostCompute(self.tiers, multipliers, expert_output, fused, rate)

    def _submit(self, work: Any) -> Pending[Any]:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(1, thread_name_prefix="expert-predictor")
        return self._threads.submit(work)

    def _on_wait(self, begins: bool) -> None:
        waiting = "transfer_wait" if self.host_holds_all else "disk_wait"
        self._clock.switch(waiting if begins else "policy")  # type: ignore[arg-type]

    @property
    def host_holds_all(self) -> bool:
        """Whether every record fits into the host tier, so that transfers come from it."""
        return bool(self.tiers) and all(tier.holds_all for tier in self.tiers.values())


def multiplier_of(
    config: EngineConfig, record: RecordFormat, support: KernelSupport, crossovers: Crossovers
) -> Product:
    """The product with records of this format under this config."""
    bits, name = record.layout.bits, config.kernel.name
    crossover = crossovers[bits]
    if "native" in support.names:
        crossover = native_crossover(crossover, record.parts)
    crossover = config.kernel.crossover_tokens or crossover
    if record.prequantized is not None:
        native = support.kernel_for(16, name) is not None
        own = crossover if native else 0
        return PrequantizedMultiplier(record.prequantized, own, config.precision.activation_bits)
    return Multiplier(
        bits,
        record.layout.group_size,
        record.code_layout,
        support,
        name,
        crossover,
        config.precision.activation_bits,
    )


def host_supports(records: Mapping[Bits, RecordFormat]) -> dict[Bits, KernelSupport]:
    """The kernels of the host beside an accelerator: native ones where they read the records."""
    own = KernelSupport(("native",)) if library.is_available() else NO_KERNELS
    return {
        bits: own if record.code_layout == "plain" else NO_KERNELS
        for bits, record in records.items()
    }
