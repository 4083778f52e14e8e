"""Distills gates that choose the next layer's experts (`prefetch.predictor: pregate`).

Pre-gated MoE (arXiv 2308.12066) fine-tunes the model so that the gate in layer l selects for layer
l + 1; here the model is unchanged and a linear gate for each layer is distilled from the choices of
the next layer. Arrays: `pregate.<layer>` [E, D].

N tokens, D hidden, E experts.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from engine.trace.trace import Trace
from engine.train.predictor import Samples, Trained, feature_scale, fit, samples, top_k_accuracy


def distill(data: Samples, steps: int, seed: int) -> tuple[Tensor, float]:
    """A gate [E, D] and its top-k accuracy on the held-out tenth."""
    training, held_out = data.split()
    torch.manual_seed(seed)
    gate = nn.Linear(data.inputs.shape[1], data.chosen.shape[1], bias=False)
    scale = feature_scale(training.inputs)
    scaled = Samples(training.inputs / scale, training.chosen)
    fit(gate, list(gate.parameters()), scaled, steps, seed)
    weights = gate.weight.detach() / scale
    return weights, top_k_accuracy(held_out.inputs @ weights.T, held_out.chosen)


def distill_pregates(trace: Trace, steps: int = 2000, seed: int = 0) -> Trained:
    """Distill a gate for each layer but the last.

    steps: batches of tokens for each layer; seed: of initial weights and order. Raises ConfigError
    if the trace has no gate inputs or is too short.
    """
    arrays: dict[str, np.ndarray] = {}
    accuracies = []
    for layer in range(trace.layers - 1):
        gate, accuracy = distill(samples(trace, layer, layer + 1), steps, seed)
        arrays[f"pregate.{layer}"] = gate.numpy()
        accuracies.append(accuracy)
    return Trained(arrays, accuracies)
