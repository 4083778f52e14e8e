"""The engine: one open model, reconfigured in place, run over micro-batches.

open -> configure -> prefill/decode ... -> configure -> ... -> close. Between configurations the
dense weights stay; slots, transfers, caches and counters are made anew.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from engine.config import EngineConfig
from engine.device.base import Device
from engine.errors import EngineError
from engine.experts.codec import RecordFormat
from engine.experts.host import HostTier
from engine.experts.kernels import (
    NO_KERNELS,
    KernelSupport,
    Multiplier,
    code_layout_for,
    probe_support,
    single_token_products,
)
from engine.experts.residency import Residency
from engine.experts.slots import Slots
from engine.experts.store import ExpertStore, open_store
from engine.experts.transfer import TransferEngine
from engine.memory import resolve
from engine.model.facts import carries_state, describe
from engine.model.hook import attach, detach
from engine.model.loader import LoadedModel, load_model
from engine.policy.expert_cache import ExpertCache
from engine.policy.registry import ALLOCATIONS, EVICTIONS, ORDERS, PLANS, PREDICTORS, QUEUES
from engine.protocol import MemoryPlan, ModelFacts
from engine.records import record_layout
from engine.run.experts_runtime import ExpertsRuntime
from engine.run.micro_batch import MicroBatch, forward_together
from engine.run.phase_clock import PhaseClock
from engine.types import Phase

Progress = Callable[[str, int, int], None]
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}

logger = logging.getLogger(__name__)


class Engine:
    """One model on one device.

    folder: the checkpoint; cache_folder: where packs and self-tests live; model_id: as the user
    named it.
    """

    def __init__(
        self,
        folder: Path,
        device: Device,
        cache_folder: Path,
        *,
        model_id: str | None = None,
        revision: str = "local",
        trust_remote_code: bool = False,
    ) -> None:
        self.device = device
        self.cache_folder = cache_folder
        self.clock = PhaseClock()
        self._folder = folder
        self._trust = trust_remote_code
        self.model: LoadedModel = self._load("bfloat16")
        self.facts: ModelFacts = describe(self.model, model_id or str(folder), revision)
        self.config: EngineConfig | None = None
        self.memory: MemoryPlan | None = None
        self._store: ExpertStore | None = None
        self._slots: Slots | None = None
        self._transfers: TransferEngine | None = None
        self._residency: Residency | None = None
        self._runtime: ExpertsRuntime | None = None
        self._handles: list[Any] = []

    @property
    def residency(self) -> Residency:
        """The experts of the present configuration."""
        if self._residency is None:
            raise EngineError("the engine is not configured: call configure first")
        return self._residency

    @property
    def transfers(self) -> TransferEngine:
        """The transfers of the present configuration."""
        if self._transfers is None:
            raise EngineError("the engine is not configured: call configure first")
        return self._transfers

    @property
    def store(self) -> ExpertStore:
        """The disk tier of the present configuration."""
        if self._store is None:
            raise EngineError("the engine is not configured: call configure first")
        return self._store

    def configure(
        self, config: EngineConfig, progress: Progress | None = None
    ) -> tuple[EngineConfig, MemoryPlan]:
        """Make the engine run this config. Returns it resolved, with its memory.

        Raises InfeasibleError before anything is allocated. A pack that is missing is made first
        (progress: stage, done, total).
        """
        config = replace(config, device=replace(config.device, name=self.device.name))
        config = PLANS[config.plan.name]().plan(config, None)
        resolved, memory = resolve(config, self.facts)
        self.release()
        if DTYPES[resolved.compute.dtype] != self.model.dtype:
            self._drop_weights()
            self.model = self._load(resolved.compute.dtype)
        support = self.kernel_support(resolved)
        record = self.record_format(resolved, support)
        self._store = open_store(
            self.model,
            record,
            self.cache_folder,
            resolved.io.direct,
            disk_budget_bytes=resolved.budget.disk_bytes,
            progress=(lambda done, total: progress("pack", done, total)) if progress else None,
        )
        self.device.compact()  # what packing left behind
        self.device.reset_peak()
        self._build(resolved, memory, record, support)
        self.config, self.memory = resolved, memory
        return resolved, memory

    def record_format(self, config: EngineConfig, support: KernelSupport) -> RecordFormat:
        """The bytes of one record under this (resolved) config."""
        parts = self.facts.parts
        layout = record_layout(parts, config.precision.bits, config.precision.group_size)
        return RecordFormat(parts, layout, sixteen_dtype(self.model), code_layout_for(support))

    def prefill(self, batches: Sequence[MicroBatch]) -> list[torch.Tensor]:
        """Run the micro-batches' tokens (of equal length) in chunks of prefill.chunk_tokens.

        Returns the logits of the last chunk's `keep` last positions, [B, keep, V] each.
        """
        prompts = [batch.tokens for batch in batches]
        length = max(prompt.shape[1] for prompt in prompts)
        chunk = self.chunk_tokens(length)
        logits: list[torch.Tensor] = []
        for start in range(0, length, chunk):
            for batch, prompt in zip(batches, prompts, strict=True):
                batch.tokens = prompt[:, start : start + chunk]
            logits = self.forward(batches, "prefill")
        return logits

    def chunk_tokens(self, length: int) -> int:
        """How many tokens of a prompt of this length go through at once."""
        assert self.config is not None, "configure first"
        whole = carries_state(self.model.config.get_text_config())
        return length if whole else self.config.prefill.chunk_tokens

    def forward(
        self,
        batches: Sequence[MicroBatch],
        phase: Phase,
        consume: Callable[[int, torch.Tensor], Any] | None = None,
    ) -> list[Any]:
        """One forward of all micro-batches together: logits [B, keep, V] of each, or what
        `consume` made of them."""
        if self._runtime is None:
            raise EngineError("the engine is not configured: call configure first")
        self._runtime.phase = phase
        for batch in batches:
            batch.tokens = batch.tokens.to(self.device.torch_device)
        single = self._is_single_token(batches)
        try:
            with torch.inference_mode(), single_token_products(single):
                return forward_together(
                    self.model.model, batches, self._runtime, self.clock, consume
                )
        except BaseException:
            self.release()  # a layer pass was left half done: only a new configure is safe
            raise

    def _is_single_token(self, batches: Sequence[MicroBatch]) -> bool:
        reduced = self.device.name == "cpu" and self.model.dtype != torch.float32
        return reduced and all(batch.tokens.numel() == 1 for batch in batches)

    def release(self) -> None:
        """Free everything of the present configuration but the dense weights."""
        detach(self.model, self._handles)
        self._handles = []
        if self._transfers is not None:
            self._transfers.close()
        if self._slots is not None:
            self._slots.close()
        if self._store is not None:
            self._store.close()
        self._store = self._slots = self._transfers = self._residency = self._runtime = None
        self.config = self.memory = None
        gc.collect()  # views of the arena may stand in reference cycles
        self.device.compact()

    close = release

    def _drop_weights(self) -> None:
        """Free the dense weights before others are loaded, so that both are never held."""
        self.model.model.to("meta")
        gc.collect()
        self.device.compact()

    def _load(self, dtype: str) -> LoadedModel:
        model = load_model(self._folder, DTYPES[dtype], trust_remote_code=self._trust)
        if self.device.name != "cpu":
            model.model.to(self.device.torch_device)
        return model

    def kernel_support(self, config: EngineConfig) -> KernelSupport:
        if self.device.name != "cpu" or config.precision.bits == 16:
            return NO_KERNELS
        return probe_support(
            self.facts.parts,
            config.precision.group_size,
            DTYPES[config.compute.dtype],
            self.cache_folder,
        )

    def _build(
        self, config: EngineConfig, memory: MemoryPlan, record: RecordFormat, support: KernelSupport
    ) -> None:
        layers = self.facts.moe_layers
        eviction = EVICTIONS[config.cache.eviction]
        shared = config.cache.scope == "shared" or not eviction().keeps
        allocation = ALLOCATIONS[config.cache.allocation]()
        pools = (memory.slots,) if shared else allocation.allocate(memory.slots, layers)
        assert self._store is not None
        self._slots = Slots(self.device, record, memory.slots)
        self._transfers = TransferEngine(
            self._slots,
            self._host_tier(config, self._store) or self._store,
            QUEUES[config.transfer.queue](),
            threads=config.io.threads,
            chunk_bytes=config.transfer.chunk_bytes,
            in_flight=config.transfer.in_flight,
        )
        self._residency = Residency(
            ExpertCache(pools, eviction, layers=layers),
            self._slots,
            self._transfers,
            ORDERS[config.batch.order](),
            self._on_wait,
        )
        self._runtime = ExpertsRuntime(
            self.model,
            self._residency,
            Multiplier(
                config.precision.bits,
                config.precision.group_size,
                record.code_layout,
                support,
                config.kernel.name,
            ),
            PREDICTORS[config.prefetch.predictor](config, self.facts),
            self.clock,
        )
        self._handles = list(attach(self.model, self._runtime))

    def _host_tier(self, config: EngineConfig, store: ExpertStore) -> HostTier | None:
        """None where it is off, or where the device is host memory itself."""
        if config.host.bytes < store.record.size_bytes or self.device.is_host_memory:
            return None
        return HostTier(store, self.device, config.host.bytes)

    def _on_wait(self, begins: bool) -> None:
        self.clock.switch("disk_wait" if begins else "policy")


def sixteen_dtype(model: LoadedModel) -> torch.dtype:
    """dtype of 16-bit records: the checkpoint's where it is fp16, else bf16."""
    layer = model.layers[0]
    source = layer.sources[layer.parts[0].name]
    name = next(iter(source.keys.values()))[0]
    dtype = model.checkpoint.tensors[name].dtype
    return torch.float16 if dtype == torch.float16 else torch.bfloat16
