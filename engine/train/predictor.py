"""Trains the networks of `prefetch.predictor: mlp` on a trace with gate inputs.

One two-layer network per layer, from its gate input to the choices of the layer `stride` after it,
as in ProMoE (arXiv 2410.22134), which also has the 9:1 split. Arrays: `mlp.<layer>.w1` [D, H],
`.b1`, `.w2` [H, E], `.b2` of each layer that is read, and `mlp.stride`.

N tokens, D hidden, H width of the network, E experts, K chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from engine.errors import ConfigError
from engine.trace.trace import Trace

BATCH_TOKENS = 256
LEARNING_RATE = 2e-3


class Trained(NamedTuple):
    """arrays: by name, as predictors read them; accuracies: of each network on held-out tokens,
    the fraction of the chosen experts among its top-k."""

    arrays: dict[str, np.ndarray]
    accuracies: list[float]


class Samples(NamedTuple):
    """inputs [N, D]; chosen [N, E]: 1 where the router chose the expert."""

    inputs: Tensor
    chosen: Tensor

    def split(self) -> tuple[Samples, Samples]:
        """Split off the last tenth for testing. Neighbouring tokens are similar, so the split is
        a position in the text, not random."""
        border = len(self.inputs) * 9 // 10
        return (
            Samples(self.inputs[:border], self.chosen[:border]),
            Samples(self.inputs[border:], self.chosen[border:]),
        )


def samples(trace: Trace, layer: int, target: int) -> Samples:
    """Gate inputs of one layer and choices of another. Raises ConfigError if the trace lacks
    gate inputs or is too short to split."""
    if trace.gate_inputs is None:
        raise ConfigError(
            "the trace has no gate inputs: record one with `tune trace --gate-inputs`"
        )
    if len(trace.experts) < 10:
        raise ConfigError(f"the trace has {len(trace.experts)} tokens, a 9:1 split needs 10")
    inputs = torch.from_numpy(trace.gate_inputs[:, layer].astype(np.float32))
    index = torch.from_numpy(trace.experts[:, target].astype(np.int64))  # [N, K], -1: none
    experts = expert_count(trace)
    chosen = torch.zeros(len(index), experts + 1).scatter_(1, index % (experts + 1), 1.0)
    return Samples(inputs, chosen[:, :experts])


def expert_count(trace: Trace) -> int:
    """Experts of a layer; without probabilities, from the highest index that was chosen."""
    if trace.probabilities is not None:
        return int(trace.probabilities.shape[-1])
    return int(trace.experts.max()) + 1


def fit(network: Callable[[Tensor], Tensor], parameters: list[Tensor], data: Samples, steps: int,
        seed: int) -> None:  # fmt: skip
    """Minimize the cross-entropy to equal weights of the chosen experts by Adam, the rate
    falling to 0."""
    fractions = data.chosen / data.chosen.sum(1, keepdim=True).clamp(min=1.0)
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(fractions), (BATCH_TOKENS,), generator=random)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(data.inputs[rows]), fractions[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


@torch.no_grad()
def top_k_accuracy(scores: Tensor, chosen: Tensor) -> float:
    """The fraction of the chosen experts among as many of the best scores; both [N, E]."""
    count = int(chosen.sum(1).max())
    best = torch.zeros_like(chosen).scatter_(1, scores.topk(count, 1).indices, 1.0)
    return float((best * chosen).sum() / chosen.sum().clamp(min=1.0))


def train_layer(data: Samples, hidden: int, steps: int, seed: int) -> tuple[nn.Sequential, float]:
    """A trained network and its accuracy on the held-out tenth. Input features are scaled to a
    root mean square of 1, which is folded into the first layer afterwards."""
    training, held_out = data.split()
    torch.manual_seed(seed)
    first = nn.Linear(data.inputs.shape[1], hidden)
    network = nn.Sequential(first, nn.ReLU(), nn.Linear(hidden, data.chosen.shape[1]))
    scale = feature_scale(training.inputs)
    scaled = Samples(training.inputs / scale, training.chosen)
    fit(network, list(network.parameters()), scaled, steps, seed)
    with torch.no_grad():
        first.weight /= scale
        accuracy = top_k_accuracy(network(held_out.inputs), held_out.chosen)
    return network, accuracy


def feature_scale(inputs: Tensor) -> Tensor:
    """Root mean square of each feature, [D]."""
    return inputs.square().mean(0).sqrt().clamp(min=1e-6)


def train_predictor(
    trace: Trace, hidden: int = 128, stride: int = 1, steps: int = 2000, seed: int = 0
) -> Trained:
    """Train one network for each layer that is read.

    hidden: width of the networks; stride: how many layers ahead they predict; steps: batches of
    BATCH_TOKENS tokens for each layer; seed: of initial weights and order. Raises ConfigError if
    the trace has no gate inputs or is too short.
    """
    arrays: dict[str, np.ndarray] = {"mlp.stride": np.array(stride)}
    accuracies = []
    for layer in range(trace.layers - stride):
        network, accuracy = train_layer(samples(trace, layer, layer + stride), hidden, steps, seed)
        accuracies.append(accuracy)
        for name, linear in (("1", network[0]), ("2", network[2])):
            assert isinstance(linear, nn.Linear)
            arrays[f"mlp.{layer}.w{name}"] = linear.weight.detach().T.contiguous().numpy()
            arrays[f"mlp.{layer}.b{name}"] = linear.bias.detach().numpy()
    return Trained(arrays, accuracies)
