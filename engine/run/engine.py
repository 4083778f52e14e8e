"""The engine: one open model, reconfigured in place, run over micro-batches.

open -> configure -> prefill/decode ... -> configure -> ... -> close. Opening leaves the non-expert
weights on the host; the first configuration takes them to the device, at its own precision. Between
configurations they stay; slots, transfers, caches and counters are created again.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from engine.config.settings import EngineConfig, optimize_name
from engine.device.base import Device
from engine.errors import EngineError
from engine.experts.encoding.codec import RecordFormat
from engine.experts.kernels.crossover import Crossovers, known_crossovers
from engine.experts.kernels.gemm import all_cores, single_token_products
from engine.experts.kernels.native import Native
from engine.experts.kernels.probe import probe_support
from engine.experts.kernels.registry import NO_KERNELS, KernelSupport
from engine.experts.residency import Residency
from engine.experts.tiers.disk import ExpertStore, open_store
from engine.experts.tiers.host_tiers import HostTiers, Progress
from engine.experts.transfer import TransferEngine
from engine.facts.machine import probe
from engine.facts.model import ModelFacts
from engine.facts.timings import ModelTimings, load_timings, timings_path
from engine.memory.plan import MemoryPlan, on_opened_device, resolve
from engine.memory.records import config_layout, group_size_of
from engine.memory.scoring import layer_wise
from engine.model.facts import carries_state, describe
from engine.model.loader import LoadedModel, load_model
from engine.native import library
from engine.policy.batch_plan import Planned, with_host_ratios
from engine.policy.registry import PLANS
from engine.precision.allocate import with_table
from engine.precision.table import bits_table, run_bits
from engine.run.configuration import LiveConfiguration, multiplier_of
from engine.run.decode_passes import DecodePasses
from engine.run.layer_by_layer import LayerWise
from engine.run.micro_batch import MicroBatch, check_token_ids, forward_together, single_tokens
from engine.run.moe_layers import RoutingRecorder
from engine.run.non_expert import NonExpertSettings, place_weights, sixteen_dtype
from engine.run.quantized_linear import NonExpertQuantizer, non_expert_kernels
from engine.run.time_split import PhaseClock
from engine.types import ActivationBits, Bits, Phase

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

MANY_TOKENS = 16  # from here on a forward pass multiplies with torch on all cores
LOGIT_BYTES = 16_000_000  # of the logits of one text that are computed at once

logger = logging.getLogger(__name__)


class Engine:
    """One model on one device.

    folder: the checkpoint; cache_folder: folder of packs and self-tests; model_id: as the user
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
        self._loaded = NonExpertSettings("bfloat16")
        self.passes = DecodePasses()
        self.model: LoadedModel = self._load(self._loaded)
        self.facts: ModelFacts = describe(self.model, model_id or str(folder), revision)
        self.planned: Planned | None = None
        self._live: LiveConfiguration | None = None
        self._host_tiers = HostTiers(device)

    @property
    def live(self) -> LiveConfiguration:
        """The parts of the present configuration. Raises EngineError before configure."""
        if self._live is None:
            raise EngineError("the engine is not configured: call configure first")
        return self._live

    @property
    def config(self) -> EngineConfig | None:
        """The present configuration, resolved; None before configure."""
        return None if self._live is None else self._live.config

    @property
    def memory(self) -> MemoryPlan | None:
        """The memory plan of the present configuration; None before configure."""
        return None if self._live is None else self._live.memory

    @property
    def residency(self) -> Residency:
        """The residency (expert slots) of the present configuration."""
        return self.live.residency

    @property
    def transfers(self) -> TransferEngine:
        """The transfers of the present configuration."""
        return self.live.transfers

    @property
    def store(self) -> ExpertStore:
        """The disk tier of the present configuration, at its own precision."""
        return self.live.store

    def configure(
        self, config: EngineConfig, progress: Progress | None = None
    ) -> tuple[EngineConfig, MemoryPlan]:
        """Apply this config. Returns it resolved, with its memory plan.

        `planned` holds the choices of its plan and their reason. Raises InfeasibleError before
        anything is allocated. A missing pack is made first (progress: stage, done, total).
        """
        self.device.bind_thread()  # records are encoded, pages pinned and slots allocated here
        config = on_opened_device(config, self.device.name, self.device.context_bytes)
        config = with_table(config, self.facts, self.cache_folder)
        timings = self._timings()
        self.planned = PLANS[config.plan.name]().plan(config, self.facts, timings)
        resolved, memory = resolve(self.planned.config, self.facts)
        resolved = with_host_ratios(resolved, self.facts, timings)
        self.release()
        self.device.limit(resolved.budget.vram_bytes)
        if library.is_available():
            resolved = resolved.overlay({"cpu.threads": library.use(resolved.cpu.threads)})
        non_expert = NonExpertSettings.of(resolved, self._on_cpu)
        if non_expert != self._loaded:
            self._drop_weights()
            self._loaded = non_expert
            self.model = self._load(non_expert)
        if not self._on_cpu:
            place_weights(self.model, non_expert.embeddings, self.device.torch_device)
        supports = {bits: self.kernel_support(resolved, bits) for bits in run_bits(resolved)}
        stores = self._open_stores(resolved, supports, progress)
        self.device.compact()  # memory left over from packing
        self.device.reset_peak()
        self._live = LiveConfiguration(
            self.model,
            self.facts,
            self.device,
            resolved,
            memory,
            stores,
            supports,
            self._host_tiers,
            self.clock,
            self.cache_folder,
            progress,
        )
        return self._live.config, memory

    @contextmanager
    def layer_wise(self, longest: int, extra_bits: Sequence[Bits] = ()) -> Iterator[LayerWise]:
        """Inside the block, texts of at most `longest` tokens pass layer by layer.

        They run at the present config's precision; afterwards the engine is configured as before.
        extra_bits: other precisions that variants need. Raises InfeasibleError, before anything is
        changed, if the longest text does not fit.
        """
        former = self.live.config
        config, tokens = layer_wise(former, self.facts, longest)
        if extra_bits:  # with the run's own group size
            config = config.overlay({"precision.low_group_size": config.precision.group_size})
        self.release()
        try:
            needed = dict.fromkeys((*run_bits(config), *extra_bits))
            supports = {bits: self.kernel_support(config, bits) for bits in needed}
            with ExitStack() as opened:
                stores = self._open_stores(config, supports, None)
                for store in stores.values():
                    opened.callback(store.close)
                crossovers = self._crossovers(config.precision.activation_bits)
                multipliers = {
                    bits: multiplier_of(config, store.record, supports[bits], crossovers)
                    for bits, store in stores.items()
                }
                largest = max(store.record.size_bytes for store in stores.values())
                passing = LayerWise(
                    self.model,
                    self.device,
                    stores,
                    multipliers,
                    bits=config.precision.bits,
                    table=bits_table(config, self.facts),
                    slots=max(2, int(config.cache.expert_bytes) // largest),
                    threads=config.io.threads,
                    chunk_bytes=config.transfer.chunk_bytes,
                    in_flight=config.transfer.in_flight,
                    capacity_tokens=tokens,
                    batch_tokens=config.prefill.chunk_tokens,
                    logit_rows=max(1, LOGIT_BYTES // (8 * self.facts.vocabulary)),
                )
                opened.callback(passing.close)
                yield passing
        finally:
            self.configure(former)

    def _open_stores(
        self,
        config: EngineConfig,
        supports: Mapping[Bits, KernelSupport],
        progress: Progress | None,
    ) -> dict[Bits, ExpertStore]:
        """Open the disk tier of each precision; makes missing packs."""
        return {
            bits: open_store(
                self.model,
                self.record_format(config, support, bits),
                self.cache_folder,
                config.io.direct,
                disk_budget_bytes=config.budget.disk_bytes,
                progress=(lambda done, total: progress("pack", done, total)) if progress else None,
            )
            for bits, support in supports.items()
        }

    def record_format(
        self, config: EngineConfig, support: KernelSupport, bits: Bits | None = None
    ) -> RecordFormat:
        """The record format under this resolved config, at its own or these bits."""
        parts = self.facts.parts
        bits = bits or config.precision.bits
        prequantized = config.precision.prequantized and bits == config.precision.bits
        return RecordFormat(
            parts,
            config_layout(config, self.facts, bits),
            sixteen_dtype(self.model),
            support.code_layout(config.kernel.name),
            prequantized=self.facts.prequantized if prequantized else None,
            optimize=optimize_name(config) if bits <= 4 and not prequantized else "none",
        )

    def record(self, recorder: RoutingRecorder | None) -> None:
        """Record all routing from now on; None stops recording."""
        self.live.runtime.record(recorder)

    @property
    def needs_future(self) -> bool:
        """Whether the present policies need future demands."""
        config = self.live.config
        return config.prefetch.predictor == "oracle" or config.cache.eviction == "belady"

    def open_elastic(self, fraction: float) -> None:
        """Give this fraction of the KV memory (0 to 1) to elastic expert slots until the next
        call. No effect without kv.elastic."""
        if self.live.memory.elastic_slots:
            self.live.open_elastic(fraction)

    def begin_sequences(self) -> None:
        """Announce that new sequences follow (prefill calls this itself)."""
        self.live.runtime.begin_sequences()

    def prefill(self, batches: Sequence[MicroBatch]) -> list[torch.Tensor]:
        """Run the micro-batches' tokens (of equal length) in chunks of prefill.chunk_tokens.

        Returns the logits of the last chunk's `keep` last positions, [B, keep, V] each.
        """
        self.begin_sequences()
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
        """Number of tokens of a prompt of this length that run in one chunk."""
        assert self.config is not None, "configure first"
        whole = carries_state(self.model.config.get_text_config())
        return length if whole else self.config.prefill.chunk_tokens

    def forward(
        self,
        batches: Sequence[MicroBatch],
        phase: Phase,
        consume: Callable[[int, torch.Tensor], Any] | None = None,
    ) -> list[Any]:
        """One forward of all micro-batches together. Returns the logits [B, keep, V] of each, or
        the results of `consume` on them."""
        runtime = self.live.runtime
        runtime.phase = phase
        self.device.bind_thread()
        for batch in batches:
            if batch.tokens.device.type == "cpu":
                check_token_ids(batch.tokens, self.facts.vocabulary)
            batch.tokens = batch.tokens.to(self.device.torch_device)
            if batch.kv is None:
                batch.kv = self.live.kv.make(len(batch.tokens))
        faster = self.live.captured or self.passes.of_batches(len(batches))
        reduced = self._on_cpu and self.model.dtype != torch.float32
        tokens = sum(batch.tokens.numel() for batch in batches)
        native = self.passes.native_tokens if phase == "decode" else 0
        few = native or MANY_TOKENS - 1
        try:
            with (
                torch.inference_mode(),
                single_token_products(reduced and single_tokens(batches)),
                all_cores(self._on_cpu and tokens > few),
            ):
                return forward_together(
                    self.model.model, batches, runtime, self.clock, consume, faster
                )
        except BaseException:
            self.release()  # a layer pass is incomplete: only a new configure is safe
            raise

    @property
    def _on_cpu(self) -> bool:
        return self.device.torch_device.type == "cpu"

    def release(self) -> None:
        """Free everything of the present configuration except the non-expert weights."""
        if self._live is not None:
            self._live.close()
        self._live = None
        gc.collect()
        self.device.compact()

    def close(self) -> None:
        """Free everything but the non-expert weights, the host tier too."""
        self.release()
        self._host_tiers.close()

    def _drop_weights(self) -> None:
        """Free the non-expert weights before others are loaded, so that both are never held."""
        self.model.model.to("meta")
        gc.collect()
        self.device.compact()

    def _load(self, non_expert: NonExpertSettings) -> LoadedModel:
        dtype = DTYPES[non_expert.dtype]
        model = load_model(
            self._folder,
            dtype,
            trust_remote_code=self._trust,
            quantize=None if non_expert.bits == 16 else self._quantizer(non_expert, dtype),
        )
        if self._on_cpu:
            crossovers = self._crossovers(non_expert.activation_bits)
            self.passes = DecodePasses.on_cpu(model, non_expert, crossovers)
        else:
            self.passes = self.passes.on_accelerator(model)
        return model

    def _quantizer(self, wanted: NonExpertSettings, dtype: torch.dtype) -> NonExpertQuantizer:
        matrices = self.facts.non_expert_matrices if wanted.kernel != "dequantize" else ()
        where = dtype, self.device.torch_device, self.cache_folder, wanted.kernel
        kernels = non_expert_kernels(matrices, wanted.bits, wanted.group, *where)
        crossovers = self._crossovers(wanted.activation_bits)
        return NonExpertQuantizer(wanted, kernels, wanted.crossover_of(wanted.bits, crossovers))

    def _crossovers(self, rounding: ActivationBits) -> Crossovers:
        return known_crossovers(self.cache_folder, self.device.torch_device, rounding)

    def _timings(self) -> ModelTimings | None:
        machine, model = probe(self.cache_folder).fingerprint, self.facts.fingerprint
        return load_timings(timings_path(self.cache_folder, machine, model, self.device.name))

    def kernel_support(self, config: EngineConfig, bits: Bits | None = None) -> KernelSupport:
        """The packed kernels that work on this machine for this config's (or these) bits."""
        bits = bits or config.precision.bits
        prequantized = config.precision.prequantized and bits == config.precision.bits
        place = self.device.torch_device
        if config.kernel.name == "dequantize":
            return NO_KERNELS
        if prequantized:
            return NO_KERNELS if Native().unavailable(place) else KernelSupport(("native",))
        held = probe_support(
            self.facts.parts,
            bits,
            group_size_of(config, bits),
            DTYPES[config.compute.dtype],
            place,
            self.cache_folder,
            config.kernel.name,
        )
        shared = config.placement.name != "device" and self.device.torch_device.type != "cpu"
        return held.readable_by_host() if shared else held
