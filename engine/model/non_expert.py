"""The non-expert weights of a model: quantizable linear layers, embeddings on the host.

Routers, norms and embeddings are not quantized, nor is a head that is tied to the embeddings: both
are one tensor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from engine.layout.non_expert import NonExpertMatrix

_LEAST_ROWS = 16  # with fewer rows it is a gate, not a projection
_OWN_PRODUCTS = ("Mamba", "Delta", "Mixer")  # modules that read their layers' weights directly


def quantizable_linears(model: Any, routers: Iterable[nn.Module | None]) -> dict[str, nn.Linear]:
    """Attention projections, shared experts, dense MLPs and an untied head, by name."""
    kept: set[int] = {
        id(module) for router in routers if router is not None for module in router.modules()
    }
    for module in model.modules():
        if any(word in type(module).__name__ for word in _OWN_PRODUCTS):
            kept |= {id(inner) for inner in module.modules()}
    if is_tied(model):
        kept.add(id(model.get_output_embeddings()))
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and id(module) not in kept
        and module.out_features >= _LEAST_ROWS
    }


def non_expert_matrices(linears: Mapping[str, nn.Linear]) -> tuple[NonExpertMatrix, ...]:
    """The shapes of these layers, each with its number of occurrences."""
    counts = Counter((linear.out_features, linear.in_features) for linear in linears.values())
    return tuple(NonExpertMatrix(*shape, count) for shape, count in sorted(counts.items()))


def is_tied(model: Any) -> bool:
    """Whether the head and the embeddings share one tensor."""
    return bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))


def can_keep_embeddings_on_host(model: Any) -> bool:
    """Whether the embeddings are a plain, untied table, or on the host already."""
    table = model.get_input_embeddings()
    plain = type(table) is nn.Embedding or isinstance(table, HostEmbedding)
    return plain and not is_tied(model)


class HostEmbedding(nn.Module):
    """An embedding table that stays in host memory; rows move to the device of the ids."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        # in a tuple, so that moving the module does not move it
        self._table = (embedding.weight.detach(),)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids [B, S] -> [B, S, D]."""
        return functional.embedding(ids.to("cpu"), self._table[0]).to(ids.device)
