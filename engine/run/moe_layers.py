"""Runs the MoE layers: gathers micro-batches, notifies the policy, multiplies.

Letters: T tokens of all micro-batches together, K chosen experts, D hidden, F expert width.

Each micro-batch runs the model's own forward in a greenlet and switches to the hub inside the
experts hook. When all have arrived at a layer, every demanded expert is computed once for all of
them. Each expert's output is written to its place [T, K, D] and is summed in routing order, so
results do not depend on the order of arrival.

On an accelerator the host waits once a layer and micro-batch: for the chosen experts and whatever
else it has to know of them, which takes what the device still has to do. Nothing else is read back.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import greenlet
import torch

from engine.experts.host_compute import Computed, HostCompute
from engine.experts.kernels.fused import FusedExperts
from engine.experts.kernels.multiplier import Product
from engine.experts.ready_records import ReadyRecords
from engine.experts.residency import Residency
from engine.experts.slots import ExpertView
from engine.model.gates import GateStack, RouterView, as_traced
from engine.model.hook import RouterProbabilities, router_scores
from engine.model.loader import LoadedModel
from engine.native.values import Experts
from engine.policy.events import Need, PassStart, Routing
from engine.policy.steps import Step
from engine.run.experts_call import ExpertsCall, GateInput
from engine.run.on_host import HostCopies, OnHost, Places, join_on_host
from engine.run.time_split import PhaseClock
from engine.trace.trace import LOOK_AHEAD_LAYERS
from engine.types import Bits, Phase


@dataclass(frozen=True)
class Ready:
    """What layers are computed with: how their experts lie in records, and where these are."""

    experts: Experts
    records: ReadyRecords


class RoutingRecorder(Protocol):
    """Records routing into a trace."""

    needs: frozenset[Need]

    def begin_sequences(self) -> None:
        """Called when new sequences begin."""

    def begin_pass(self, start: PassStart) -> None:
        """Called when a forward pass begins."""

    def gate_entered(self, layer: int, micro_batch: int, view: RouterView) -> None:
        """Called when a router is about to run."""

    def routed(self, layer: int, micro_batch: int, routing: Routing) -> None:
        """Called when the routing of one micro-batch is known."""


class ExpertsRuntime:
    """Implements ExpertsPort. phase: set by the caller before each forward; always_asks: whether
    every layer asks the policy before it computes, as where something is predicted.

    multipliers: by bits of the record; host: computes experts in the host tier, if used; fused:
    computes those of a wave together, if there is such a way.
    """

    def __init__(
        self,
        model: LoadedModel,
        residency: Residency,
        multipliers: Mapping[Bits, Product],
        gates: GateStack,
        clock: PhaseClock,
        host: HostCompute | None = None,
        fused: FusedExperts | None = None,
    ) -> None:
        self._model = model
        self._residency = residency
        self._multipliers = dict(multipliers)
        self._gates = gates
        self._clock = clock
        self._host = host
        self._fused = fused
        self._copies = HostCopies(residency.device, clock)
        self._arrived = 0
        self._scoring = False
        self._recorder: RoutingRecorder | None = None
        self._scores: torch.Tensor | None = None
        self._routers = RouterProbabilities()
        self.phase: Phase = "decode"
        self.always_asks = False
        self._set_needs()

    def record(self, recorder: RoutingRecorder | None) -> None:
        """Notify this recorder of every event; None stops that."""
        self._recorder = recorder
        if recorder is not None and "top_experts" in recorder.needs:
            self._gates = self._gates.at_least(LOOK_AHEAD_LAYERS)
        self._set_needs()

    def begin_sequences(self) -> None:
        """Notify policy and recorder that new sequences begin."""
        self._residency.policy.begin_sequences()
        if self._recorder is not None:
            self._recorder.begin_sequences()

    def begin_pass(self, tokens: Sequence[torch.Tensor]) -> None:
        """Start a forward pass of these micro-batches' tokens ([B, S] each)."""
        embeddings = None
        if "embeddings" in self._needs:
            table = self._model.model.get_input_embeddings()
            rows = [table(batch.reshape(-1)) for batch in tokens]
            embeddings = as_traced(torch.cat(rows))  # [T, D]
        start = PassStart(self.phase, tuple(batch.numel() for batch in tokens), embeddings)
        self._arrived = 0
        if self._recorder is not None:
            self._recorder.begin_pass(start)
        self._residency.begin_pass(start)

    def end_pass(self) -> None:
        """End the forward pass."""
        self._copies.pass_ended()
        self._residency.end_pass()

    # ExpertsPort -------------------------------------------------------------------------------

    def gate_entered(
        self, layer: int, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        """Let predictors look ahead from this router's input."""
        if self._scoring:
            return
        if self.watches_gate:
            self._clock.switch("policy")
            self._scoring = True
            try:
                view = self._gates.view(layer, arguments, keywords)
                if self._recorder is not None:
                    self._recorder.gate_entered(layer, self._arrived, view)
                if self._residency.policy.watches_gate:
                    self._residency.gate_entered(layer, self._arrived, view)
            finally:
                self._scoring = False
        self._clock.switch("router")

    def gate_left(self, layer: int, output: Any) -> None:
        """Keep the router's scores if needed; the non-expert weights run next."""
        if self._scoring:
            return
        if "probabilities" in self._needs:
            self._scores = router_scores(output)
        self._clock.switch("non_expert")

    def experts(
        self, layer: int, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Route at once, then switch to the hub, which resumes with the output [T, D]. A forward
        pass that runs outside of greenlets is alone: its experts run at once."""
        call = self.call(layer, hidden, index, weights)
        hub = greenlet.getcurrent().parent
        if hub is None:
            (out,) = self.compute([call])
        else:
            self._clock.switch("other")
            out = hub.switch(call)
        self._clock.switch("non_expert")
        return out

    # The native pass ----------------------------------------------------------------------------

    def ready(self, tokens: int) -> Ready | None:
        """What layers of this many tokens may be computed with before policy and recorder are told;
        None: they have to be asked, or need more than the chosen experts."""
        records, fused = self._residency.ready, self._fused
        if records is None or fused is None or self._needs or self.always_asks:
            return None
        spec = fused.only(tokens)
        return None if spec is None else Ready(spec, records)

    def computed(
        self, first: int, index: list[list[list[int]]], seconds: float, sizes: Sequence[int]
    ) -> None:
        """Layers from `first` on were computed with what was ready: index [L][T][K], sizes: tokens
        of each micro-batch. seconds: that their experts took."""
        self._clock.move(seconds, "non_expert", "compute")
        self._clock.switch("policy")
        for layer, choices in enumerate(index, first):
            if self._recorder is not None:
                rest = iter(choices)
                for number, size in enumerate(sizes):
                    own = Routing(list(itertools.islice(rest, size)))
                    self._recorder.routed(layer, number, own)
            self._residency.computed_ready(layer, Routing(choices))
        self._clock.switch("non_expert")

    def call(
        self, layer: int, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> ExpertsCall:
        """What one micro-batch asks of a layer, routed at once: hidden [t, D]; index, weights
        [t, K]."""
        on_host = self._read(hidden, index, weights)
        self._routed(layer, on_host)
        return ExpertsCall(layer, hidden, index, weights, on_host)

    def joined(self, gate: GateInput, call: ExpertsCall) -> torch.Tensor:
        """The experts of micro-batches that pass what surrounds them together, [T, D]; gate_left
        was called for all of them. Each is told of and routed as if it had come alone, but the host
        waits once for all."""
        call.on_host = self._read(call.hidden, call.index, call.weights)
        own = call.on_host.split(gate.sizes)
        for entered, on_host in zip(gate.split(), own, strict=True):
            if entered is not None:
                self.gate_entered(call.layer, *entered)
            self._clock.switch("policy")
            self._routed(call.layer, on_host)
        out = self._compute_joined([call])
        self._clock.switch("non_expert")
        return out

    # The hub -----------------------------------------------------------------------------------

    def compute(self, calls: Sequence[ExpertsCall]) -> list[torch.Tensor]:
        """Run the experts of a layer at which all micro-batches have arrived. Returns one output
        for each."""
        out = self._compute_joined(calls)  # [T, D]
        self._clock.switch("other")
        if len(calls) == 1:
            return [out]
        return list(torch.tensor_split(out, _ends(calls)))

    def _compute_joined(self, calls: Sequence[ExpertsCall]) -> torch.Tensor:
        """As compute; the outputs of all, [T, D]."""
        layer = calls[0].layer
        assert all(call.layer == layer for call in calls), "micro-batches diverged"
        self._clock.switch("policy")
        self._arrived = 0
        self._residency.layer_routed()
        self._clock.switch("compute")
        hidden = _join([call.hidden for call in calls])  # [T, D]
        index = _join([call.index for call in calls])  # [T, K]
        weights = _join([call.weights for call in calls])  # [T, K]
        on_host = join_on_host([call.on_host for call in calls])
        out = self._run_experts(layer, hidden, index, weights, on_host)
        self._copies.experts_queued()
        return out

    def _set_needs(self) -> None:
        recorded = self._recorder.needs if self._recorder is not None else frozenset()
        self._needs: frozenset[Need] = self._residency.policy.needs | recorded
        self.watches_gate = bool(self._needs & {"top_experts", "gate_input"})

    def _read(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> OnHost:
        """What the host needs of the router's choice, with one wait: hidden [T, D]; index, weights
        [T, K]."""
        self._clock.switch("policy")
        scores, self._scores = self._scores, None
        wanted = {
            "index": index,
            "weights": weights if "weights" in self._needs else None,
            "scores": scores,
            "hidden": hidden if self._host is not None else None,
        }
        asked = {name: tensor for name, tensor in wanted.items() if tensor is not None}
        return OnHost(**dict(zip(asked, self._copies.read(list(asked.values())), strict=True)))

    def _routed(self, layer: int, on_host: OnHost) -> None:
        """Tell of the router's choice for one micro-batch."""
        choices: list[list[int]] = on_host.index.tolist()
        count = self._model.layers[layer].count
        if max(map(max, choices), default=0) >= count:
            choices = [[e for e in choice if e < count] for choice in choices]
        weights, scores = on_host.weights, on_host.scores
        routing = Routing(
            choices,
            None if weights is None else as_traced(weights),
            None if scores is None else self._probabilities(layer, scores),
        )
        if self._recorder is not None:
            self._recorder.routed(layer, self._arrived, routing)
        self._residency.routed(layer, self._arrived, routing)
        self._arrived += 1

    def _probabilities(self, layer: int, scores: torch.Tensor) -> Any:
        """scores: on the host, [t, E]."""
        found = self._routers.of(layer, scores)
        return None if found is None else as_traced(found)  # [t, E]

    def _run_experts(
        self,
        layer: int,
        hidden: torch.Tensor,
        index: torch.Tensor,
        weights: torch.Tensor,
        on_host: OnHost,
    ) -> torch.Tensor:
        (tokens, chosen), fused = index.shape, self._fused
        module = self._model.layers[layer].experts
        places = Places(on_host.index, self._model.layers[layer].count)
        pending = self._start_host(module, on_host)
        new = torch.empty if self._residency.computes_all(index.numel()) else torch.zeros
        out = new(index.numel(), hidden.shape[1], dtype=hidden.dtype, device=hidden.device)
        if fused is not None:
            hidden, index = hidden.contiguous(), index.to(torch.int64).contiguous()
            fused.begin(index)
        most_waves = None if fused is None else fused.most_waves(tokens)
        for wave in self._residency.device_waves(most_waves):
            self._clock.switch("compute")
            for step in self._compute_together(wave, hidden, index, places, out):
                view, multiply = self._residency.view(step), self._multipliers[step.bits]
                rows = places.of(step.expert.expert).to(hidden.device, non_blocking=True)
                x = hidden if tokens == 1 else hidden[rows // chosen]  # [t, D]
                out[rows] = expert_output(module, multiply, view, x).to(out.dtype)  # [t, D]
        self._clock.switch("compute")
        if pending is not None:
            rows, values = pending.result()  # [R], [R, D]
            values = values.to(out.dtype)
            out[rows.to(out.device, non_blocking=True)] = values.to(out.device, non_blocking=True)
        if fused is not None:
            return fused.combine(out, weights)
        out = out.view(tokens, chosen, -1) * weights.unsqueeze(-1).to(out.dtype)  # [T, K, D]
        return out.sum(dim=1).to(hidden.dtype)  # [T, D]

    def _compute_together(
        self,
        wave: Sequence[Step],
        hidden: torch.Tensor,
        index: torch.Tensor,
        places: Places,
        out: torch.Tensor,
    ) -> Sequence[Step]:
        """Compute the experts of a wave that are computed together into `out` [T*K, D]. Returns the
        others."""
        if self._fused is None:
            return wave
        tokens, most = index.shape[0], self._fused.most_tokens
        together: dict[Bits, list[Step]] = {}
        others = []
        for step in wave:
            limit = most.get(step.bits, 0)
            if tokens <= limit or len(places.of(step.expert.expert)) <= limit:
                together.setdefault(step.bits, []).append(step)
            else:
                others.append(step)
        for bits, steps in together.items():
            self._fused.run(bits, self._residency.addresses(steps), hidden, index, out)
        return others

    def _start_host(self, module: Any, on_host: OnHost) -> Future[Computed] | None:
        """Submit the experts of this layer that the host computes; None if there are none."""
        if self._host is None:
            return None
        experts = [(step.expert, step.bits) for step in self._residency.host_steps()]
        if not experts:
            return None
        assert on_host.hidden is not None, (
            "the host may compute, but was not given the hidden states"
        )
        index = on_host.index.to(torch.int64)
        return self._host.submit(module, experts, on_host.hidden, index)


def expert_output(
    module: Any, multiply: Product, view: ExpertView, x: torch.Tensor
) -> torch.Tensor:
    """x [t, D] -> [t, D], as transformers' eager experts compute it."""
    up_name = "gate_up_proj" if module.has_gate else "up_proj"
    h = multiply(x, view.matrices[up_name])  # [t, 2F] or [t, F]
    if module.has_bias:
        h = h + view.vectors[f"{up_name}_bias"].to(h.dtype)
    h = module._apply_gate(h) if module.has_gate else module.act_fn(h)  # [t, F]
    y = multiply(h, view.matrices["down_proj"])  # [t, D]
    if module.has_bias:
        y = y + view.vectors["down_proj_bias"].to(y.dtype)
    if module.has_post_expert_norm:
        y = module.post_expert_norm(y)
    return y


def _join(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _ends(calls: Iterable[ExpertsCall]) -> list[int]:
    """The ends of all micro-batches but the last in the joined tokens."""
    return list(itertools.accumulate(call.hidden.shape[0] for call in calls))[:-1]
