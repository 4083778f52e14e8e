"""Gate look-ahead: applies later routers to the present gate input.

Letters: T tokens, D hidden, E experts, S stacked routers.

A router whose choice is the top of a plain product [T, D] x [D, E] is stacked with its successors,
so that one product serves all layers ahead; any other router module is called on the present
router's real arguments. Which kind a router is is tested on random inputs when the stack is made: a
prediction never changes an output, so a wrong result would only cost speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from engine.model.hook import router_choice
from engine.model.loader import LoadedModel
from engine.policy.events import Floats

RANKED_EXTRA = 4  # beyond the k experts of a token; traces keep as many
_TRIED_TOKENS = 32


class GateStack:
    """The routers of a model, `depth` of them in one product.

    Beyond depth 1 it holds copies of the stackable weights: depth x E x D numbers per layer.
    """

    def __init__(self, model: LoadedModel, depth: int, chosen: int) -> None:
        self.depth = depth
        self._model = model
        self._chosen = chosen
        self._routers = [layer.router for layer in model.layers]
        self._stacks: list[torch.Tensor | None] = []
        self._experts = max(layer.count for layer in model.layers)
        with torch.inference_mode():
            linear = [_linear_weight(router, chosen) for router in self._routers]
            for layer in range(len(linear)):
                ahead = linear[layer + 1 : layer + 1 + depth]
                plain = [weight for weight in ahead if weight is not None]
                same = len(plain) == len(ahead) and len({w.shape for w in plain}) == 1
                self._stacks.append(_stack(plain) if same else None)  # [S*E, D]

    def at_least(self, depth: int) -> GateStack:
        """This stack, or a deeper one of the same model."""
        return self if self.depth >= depth else GateStack(self._model, depth, self._chosen)

    def view(self, layer: int, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> RouterView:
        """A view for policies of the router of `layer` on these arguments."""
        return RouterView(
            self._routers,
            self._stacks[layer],
            self._experts,
            self._chosen + RANKED_EXTRA,
            layer,
            arguments,
            keywords,
        )


class RouterView:
    """Implements GateView. The caller disables hooks while router modules are called."""

    def __init__(
        self,
        routers: Sequence[nn.Module | None],
        stack: torch.Tensor | None,
        experts: int,
        ranked: int,
        layer: int,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
    ) -> None:
        self._routers = routers
        self._stack = stack
        self._experts = experts
        self._least = ranked
        self._layer = layer
        self._arguments = arguments
        self._keywords = keywords
        self._ranked: list[list[list[int]]] | None = None
        self._ranked_count = 0

    def top_experts(self, layer: int, count: int) -> Sequence[Sequence[int]]:
        """See GateView."""
        ahead = layer - self._layer - 1
        if self._stack is not None:
            if self._ranked is None or self._ranked_count < count:
                # never fewer than a trace keeps: ties must be broken alike for every count
                self._ranked_count = max(count, self._least)
                self._ranked = self._rank(self._ranked_count)
            if ahead < len(self._ranked):
                found = self._ranked[ahead]
                return found if self._ranked_count == count else [row[:count] for row in found]
        router = self._routers[layer]
        if router is None:
            return []
        return router_choice(router(*self._arguments, **self._keywords), count)

    def gate_input(self) -> Floats:
        """See GateView: the router's first tensor argument as float32 numpy [T, D]."""
        hidden = _first_tensor(self._arguments, self._keywords)
        assert hidden is not None, "a router without a tensor argument"
        return as_traced(hidden.reshape(-1, hidden.shape[-1]))  # [T, D]

    def _rank(self, count: int) -> list[list[list[int]]]:
        """Rank the experts of all stacked layers at once, [S][T][count]."""
        assert self._stack is not None
        hidden = _first_tensor(self._arguments, self._keywords)
        assert hidden is not None
        x = hidden.reshape(-1, hidden.shape[-1]).to(self._stack.dtype)  # [T, D]
        logits = functional.linear(x, self._stack)  # [T, S*E]
        logits = logits.view(x.shape[0], -1, self._experts)  # [T, S, E]
        best = logits.topk(min(count, self._experts), dim=-1).indices  # [T, S, count]
        ranked: list[list[list[int]]] = best.transpose(0, 1).tolist()  # [S][T][count]
        return ranked


def as_traced(tensor: torch.Tensor) -> Floats:
    """float32 numpy, rounded as traces keep it: replay and engine decide on equal numbers."""
    limit = torch.finfo(torch.float16).max
    kept = tensor.float().clamp(-limit, limit).half().float().cpu()
    array: Floats = kept.numpy()
    return array


def _stack(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    return weights[0] if len(weights) == 1 else torch.cat(list(weights))


def _first_tensor(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> torch.Tensor | None:
    for value in (*arguments, *keywords.values()):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value
    return None


def _linear_weight(router: nn.Module | None, chosen: int) -> torch.Tensor | None:
    """The router's weight [E, D] if it alone decides the choice, else None."""
    weight = getattr(router, "weight", None)
    if router is None or not isinstance(weight, torch.Tensor) or weight.dim() != 2:
        return None
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_TRIED_TOKENS, weight.shape[1], generator=generator)
    x = x.to(weight.device, weight.dtype)
    try:
        expected = router_choice(router(x), chosen)
    except (TypeError, RuntimeError, ValueError, IndexError):
        return None  # it takes other arguments than one tensor of hidden states
    found: list[list[int]] = functional.linear(x, weight).topk(chosen, dim=-1).indices.tolist()
    agreed = sum(set(a) == set(b) for a, b in zip(expected, found, strict=False))
    return weight if agreed >= 0.9 * _TRIED_TOKENS else None
