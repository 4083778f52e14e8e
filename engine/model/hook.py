"""The experts hook: transformers' experts interface dispatches every MoE layer here.

Each experts shell carries its port (set by `attach`); the registered function finds it there, so
there is no global state and several models can be open at once. Routers get a pre-hook that passes
on their real arguments, so that a later router can be called on them to score its experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers.integrations.moe import ExpertsInterface

from engine.model.loader import EXPERTS_IMPLEMENTATION, LoadedModel, MoeLayer

_PORT = "_expertune_port"


class ExpertsPort(Protocol):
    """The interface that the runtime offers to the model's forward.

    watches_gate: whether the router's input is read after `gate_entered` has returned.
    """

    @property
    def watches_gate(self) -> bool:
        """See above."""

    def gate_entered(
        self, layer: int, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        """Called before the router of this MoE layer runs on these arguments."""

    def gate_left(self, layer: int, output: Any) -> None:
        """Called after the router has run; output: its return value."""

    def experts(
        self, layer: int, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Compute the experts of a layer: hidden [T, D], index [T, K] (= number of experts:
        skip), weights [T, K] -> [T, D]."""


def attach(model: LoadedModel, port: ExpertsPort) -> list[RemovableHandle]:
    """Dispatch this model's experts and routers to `port`. Remove the handles to detach."""
    ExpertsInterface.register(EXPERTS_IMPLEMENTATION, _dispatch)
    handles: list[RemovableHandle] = []
    for layer in model.layers:
        handles.extend(_attach(layer, port))
    return handles


def detach(model: LoadedModel, handles: Sequence[RemovableHandle]) -> None:
    """Undo attach."""
    for handle in handles:
        handle.remove()
    for layer in model.layers:
        layer.experts.__dict__.pop(_PORT, None)


def port_of(experts: nn.Module) -> tuple[ExpertsPort, int]:
    """The port of an experts shell, and the layer's number there."""
    found: tuple[ExpertsPort, int] = experts.__dict__[_PORT]
    return found


@contextmanager
def answered_by(layer: MoeLayer, port: ExpertsPort) -> Iterator[None]:
    """Inside the block this layer's experts and router are dispatched to `port`."""
    ExpertsInterface.register(EXPERTS_IMPLEMENTATION, _dispatch)
    handles = _attach(layer, port)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        del layer.experts.__dict__[_PORT]


@contextmanager
def redirected(model: LoadedModel, port: ExpertsPort) -> Iterator[None]:
    """Inside the block the experts and routers of an attached model are dispatched to `port`."""
    former = [port_of(layer.experts) for layer in model.layers]
    try:
        for layer in model.layers:
            _set_port(layer, port)
        yield
    finally:
        for layer, (own, _) in zip(model.layers, former, strict=True):
            _set_port(layer, own)


def router_choice(output: Any, count: int) -> list[list[int]]:
    """The `count` best experts of each token, best first, from a router's output.

    Routers return logits [T, E], or a tuple that contains logits or probabilities [T, E], sometimes
    only (indices, weights): then only the chosen experts are known.
    """
    tensors = [output] if isinstance(output, torch.Tensor) else list(output)
    tensors = [t for t in tensors if isinstance(t, torch.Tensor) and t.dim() >= 2]
    scores = [t for t in tensors if t.is_floating_point()]
    widest = max(scores, key=lambda t: t.shape[-1], default=None)
    indices = [t for t in tensors if not t.is_floating_point()]
    if indices and (widest is None or indices[0].shape[-1] == widest.shape[-1]):
        chosen: list[list[int]] = indices[0].reshape(-1, indices[0].shape[-1])[:, :count].tolist()
        return chosen
    if widest is None:
        return []
    flat = widest.reshape(-1, widest.shape[-1])  # [T, E]
    best = flat.topk(min(count, flat.shape[-1]), dim=-1).indices  # [T, count]
    ranked: list[list[int]] = best.tolist()
    return ranked


def router_scores(output: Any) -> torch.Tensor | None:
    """A router's scores of all experts, [T, E] in float32, from its output: logits, or scores
    between 0 and 1. None if the output does not contain them."""
    tensors = [output] if isinstance(output, torch.Tensor) else list(output)
    scores = [t for t in tensors if isinstance(t, torch.Tensor) and t.is_floating_point()]
    scores = [t for t in scores if t.dim() >= 2]
    widest = max(scores, key=lambda t: t.shape[-1], default=None)
    narrow = min((t.shape[-1] for t in tensors if isinstance(t, torch.Tensor)), default=0)
    if widest is None or (len(tensors) > 1 and widest.shape[-1] == narrow):
        return None
    return widest.reshape(-1, widest.shape[-1]).float()


class RouterProbabilities:
    """Converts routers' scores to probabilities of all experts.

    Logits go through a softmax, scores between 0 and 1 are scaled to sum to 1. The kind of a
    layer's scores is remembered: a single token's logits may all lie between 0 and 1.
    """

    def __init__(self) -> None:
        self._logits: set[int] = set()

    def of(self, layer: int, output: Any) -> torch.Tensor | None:
        """Probabilities [T, E]; None if this router's output does not contain scores."""
        scores = router_scores(output)
        if scores is None:
            return None
        if layer not in self._logits and (scores.min() < 0 or scores.max() > 1):
            self._logits.add(layer)
        if layer in self._logits:
            return scores.softmax(dim=-1)
        return scores / scores.sum(dim=-1, keepdim=True).clamp_min(1e-9)


def _attach(layer: MoeLayer, port: ExpertsPort) -> list[RemovableHandle]:
    _set_port(layer, port)
    return [] if layer.router is None else _watch_router(layer.router, layer.experts)


def _set_port(layer: MoeLayer, port: ExpertsPort) -> None:
    object.__setattr__(layer.experts, _PORT, (port, layer.index))


def _watch_router(router: nn.Module, experts: nn.Module) -> list[RemovableHandle]:
    """Pass on what the router of these experts is called with, to the port that they have then."""

    def before(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        port, layer = port_of(experts)
        port.gate_entered(layer, arguments, keywords)

    def after(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        port, layer = port_of(experts)
        port.gate_left(layer, output)

    return [
        router.register_forward_pre_hook(before, with_kwargs=True),
        router.register_forward_hook(after),
    ]


def _dispatch(
    module: nn.Module, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    port, layer = port_of(module)
    out: torch.Tensor = port.experts(layer, hidden, index, weights)
    return out
