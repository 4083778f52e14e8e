"""Runs the MoE layers: gathers micro-batches, asks for predictions, borrows experts, multiplies.

Letters: T tokens of all micro-batches together, K chosen experts, D hidden, F expert width.

Each micro-batch runs the model's own forward in a greenlet and switches to the hub inside the
experts hook. When all have arrived at a layer, every demanded expert is computed once for all of
them. Each expert's output goes to its place [T, K, D] and is summed in routing order, so results do
not depend on what arrived first.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import greenlet
import torch
from torch import nn

from engine.experts.kernels import Multiplier
from engine.experts.residency import Residency
from engine.experts.slots import ExpertView
from engine.model.hook import router_choice
from engine.model.loader import LoadedModel
from engine.policy.predict.base import Predictor
from engine.run.phase_clock import PhaseClock
from engine.types import Phase


@dataclass
class ExpertsCall:
    """One micro-batch waiting in the experts hook of a layer."""

    layer: int
    hidden: torch.Tensor
    index: torch.Tensor
    weights: torch.Tensor


class ExpertsRuntime:
    """Implements ExpertsPort. phase: set by the caller before each forward."""

    def __init__(
        self,
        model: LoadedModel,
        residency: Residency,
        multiply: Multiplier,
        predictor: Predictor,
        clock: PhaseClock,
    ) -> None:
        self._model = model
        self._residency = residency
        self._multiply = multiply
        self._predictor = predictor
        self._clock = clock
        self._open_layer = -1
        self._scoring = False
        self.phase: Phase = "decode"

    # ExpertsPort -------------------------------------------------------------------------------

    def gate_entered(
        self, layer: int, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        """Let the predictor look ahead from this router's input."""
        if self._scoring:
            return
        if self._predictor.needs_gate_input:
            self._clock.switch("policy")
            scorer = _RouterScorer(self, self._model, layer, arguments, keywords)
            for prediction in self._predictor.predict(layer, scorer):
                self._residency.predict(prediction.layer, prediction.experts)
        self._clock.switch("router")

    def gate_left(self, layer: int) -> None:
        """Back in the dense part."""
        if not self._scoring:
            self._clock.switch("dense")

    def experts(
        self, layer: int, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Demand at once, then switch to the hub, which resumes with the output [T, D]."""
        self._clock.switch("policy")
        call = ExpertsCall(layer, hidden, index, weights)
        self._demand(call)
        self._clock.switch("other")
        out: torch.Tensor = greenlet.getcurrent().parent.switch(call)
        self._clock.switch("dense")
        return out

    # The hub -----------------------------------------------------------------------------------

    def compute(self, calls: Sequence[ExpertsCall]) -> list[torch.Tensor]:
        """All micro-batches stand at one layer: run its experts. Returns one output for each."""
        layer = calls[0].layer
        assert all(call.layer == layer for call in calls), "micro-batches diverged"
        self._clock.switch("compute")
        hidden = _join([call.hidden for call in calls])  # [T, D]
        index = _join([call.index for call in calls])  # [T, K]
        weights = _join([call.weights for call in calls])  # [T, K]
        out = self._run_experts(layer, hidden, index, weights)  # [T, D]
        self._open_layer = -1
        self._clock.switch("other")
        if len(calls) == 1:
            return [out]
        return list(torch.tensor_split(out, _ends(calls)))

    def _demand(self, call: ExpertsCall) -> None:
        if self._open_layer < 0:
            self._residency.begin(call.layer, self.phase)
            self._open_layer = call.layer
        choices: list[list[int]] = call.index.tolist()
        self._predictor.observe(call.layer, choices)
        count = self._model.layers[call.layer].count
        wanted = dict.fromkeys(e for choice in choices for e in choice if e < count)
        self._residency.demand(wanted)

    def _run_experts(
        self, layer: int, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        tokens, chosen = index.shape
        module = self._model.layers[layer].experts
        out = hidden.new_zeros(tokens * chosen, hidden.shape[1])  # [T*K, D]
        if tokens == 1:
            row_of = {expert: row for row, expert in enumerate(index[0].tolist())}
            for expert, view in self._residency.steps():
                self._clock.switch("compute")
                out[row_of[expert.expert]].copy_(self._expert_output(module, view, hidden)[0])
        else:
            places = _places_by_expert(index.reshape(-1), self._model.layers[layer].count)
            for expert, view in self._residency.steps():
                self._clock.switch("compute")
                place = places[expert.expert]
                y = self._expert_output(module, view, hidden[place // chosen])  # [t, D]
                out[place] = y.to(out.dtype)
        self._clock.switch("compute")
        out = out.view(tokens, chosen, -1) * weights.unsqueeze(-1).to(out.dtype)  # [T, K, D]
        return out.sum(dim=1).to(hidden.dtype)  # [T, D]

    def _expert_output(self, module: Any, view: ExpertView, x: torch.Tensor) -> torch.Tensor:
        """x [t, D] -> [t, D], as transformers' eager experts compute it."""
        up_name = "gate_up_proj" if module.has_gate else "up_proj"
        h = self._multiply(x, view.matrices[up_name])  # [t, 2F] or [t, F]
        if module.has_bias:
            h = h + view.vectors[f"{up_name}_bias"].to(h.dtype)
        h = module._apply_gate(h) if module.has_gate else module.act_fn(h)  # [t, F]
        y = self._multiply(h, view.matrices["down_proj"])  # [t, D]
        if module.has_bias:
            y = y + view.vectors["down_proj_bias"].to(y.dtype)
        if module.has_post_expert_norm:
            y = module.post_expert_norm(y)
        return y


class _RouterScorer:
    """Calls later routers on the present router's arguments."""

    def __init__(
        self,
        runtime: ExpertsRuntime,
        model: LoadedModel,
        layer: int,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
    ) -> None:
        self._runtime = runtime
        self._model = model
        self._arguments = arguments
        self._keywords = keywords

    def top_experts(self, layer: int, count: int) -> list[list[int]]:
        """See Scorer."""
        router: nn.Module | None = self._model.layers[layer].router
        if router is None:
            return []
        self._runtime._scoring = True
        try:
            return router_choice(router(*self._arguments, **self._keywords), count)
        finally:
            self._runtime._scoring = False


def _join(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _ends(calls: Sequence[ExpertsCall]) -> list[int]:
    """Where each micro-batch but the last ends in the joined tokens."""
    return list(itertools.accumulate(call.hidden.shape[0] for call in calls))[:-1]


def _places_by_expert(flat: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    """Positions in [T*K] of each expert's tokens, in routing order."""
    order = torch.argsort(flat, stable=True)
    sizes = torch.bincount(flat, minlength=count + 1).tolist()
    ends = list(itertools.accumulate(sizes))
    return torch.tensor_split(order, ends[:-1])
