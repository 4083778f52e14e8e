"""Routing of the demo model: training losses and the locality measure.

`RouterLogits` reads the routers; `routing_losses` keeps the experts in use and neighbouring tokens
on the same ones; `lru_hit_rate` says how well they stayed there.

T tokens, K chosen experts a token, E experts.
"""

from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import Qwen3MoeForCausalLM


class RoutingLosses(NamedTuple):
    """Means over the layers; `balance` is 1 when use is even, `reuse` in nats."""

    balance: Tensor
    reuse: Tensor


class RouterLogits:
    """Collect each layer's router logits [T, E] of the forward passes inside the block."""

    def __init__(self, model: Qwen3MoeForCausalLM) -> None:
        self.model = model

    def __enter__(self) -> list[Tensor]:
        logits: list[Tensor] = []
        self.hooks = [
            layer.mlp.gate.register_forward_hook(lambda _m, _i, out: logits.append(out[0]))
            for layer in self.model.model.layers
        ]
        return logits

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()


def routing_losses(router_logits: list[Tensor], sequences: int, chosen: int) -> RoutingLosses:
    """Measure balance and reuse of the routes; each logits tensor is [T, E], T whole sequences.

    balance: E * sum over experts of (share of routes * mean probability), as in Switch
    Transformers (Fedus et al., 2021). reuse: minus the log of the probability that a token gives to
    the experts which its predecessor chose.
    """
    balance, reuse = [], []
    for logits in router_logits:
        experts = logits.shape[-1]
        probabilities = logits.float().softmax(-1)  # [T, E]
        index = logits.topk(chosen, dim=-1).indices  # [T, K]
        fraction = torch.bincount(index.reshape(-1), minlength=experts) / index.numel()  # [E]
        balance.append(experts * (fraction * probabilities.mean(0)).sum())
        by_sequence = probabilities.view(sequences, -1, experts)
        before = index.view(sequences, -1, chosen)[:, :-1]
        mass = by_sequence[:, 1:].gather(-1, before).sum(-1)  # [sequences, T / sequences - 1]
        reuse.append(-(mass + 1e-6).log().mean())
    return RoutingLosses(torch.stack(balance).mean(), torch.stack(reuse).mean())


def lru_hit_rate(routes: Tensor, capacity: int) -> float:
    """Replay one layer's decode through a least-recently-used cache; routes [T, K], one text.

    Every request before the cache is first full is left out of the count.
    """
    held: OrderedDict[int, None] = OrderedDict()
    hits = requests = 0
    for chosen in routes.tolist():
        warm = len(held) == capacity
        hits += sum(expert in held for expert in chosen) if warm else 0
        requests += len(chosen) if warm else 0
        for expert in chosen:
            held[expert] = None
            held.move_to_end(expert)
        while len(held) > capacity:
            held.popitem(last=False)
    return hits / max(requests, 1)
