"""Train the networks of `prefetch.predictor: mlp` on a trace: `python scripts/train_predictor.py`.

One two-layer network for each layer, from its gate input to the experts that the layer `stride`
behind it chose, as in ProMoE (arXiv 2410.22134), which also has the 9:1 split. In: a trace with
gate inputs. Out: one .npz with `mlp.<layer>.w1` [D, H], `.b1`, `.w2` [H, E], `.b2` of each layer
that is read, and `mlp.stride`.

N tokens, D hidden, H width of the network, E experts, K chosen.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from torch import Tensor, nn

from engine.errors import EngineError
from engine.trace.trace import (
    Trace,
    load_trace,
)

BATCH_TOKENS = 256
LEARNING_RATE = 2e-3


class Samples(NamedTuple):
    """inputs [N, D]; chosen [N, E]: 1 where the router chose the expert."""

    inputs: Tensor
    chosen: Tensor

    def split(self) -> tuple["Samples", "Samples"]:
        """The first nine tenths to train on and the last to test with: neighbouring tokens are
        alike, so the border is a place in the text and not a draw."""
        border = len(self.inputs) * 9 // 10
        return (
            Samples(self.inputs[:border], self.chosen[:border]),
            Samples(self.inputs[border:], self.chosen[border:]),
        )


def samples(trace: Trace, layer: int, target: int) -> Samples:
    """Gate inputs of one layer and choices of another. Raises ValueError where the trace lacks
    gate inputs or is too short to split."""
    if trace.gate_inputs is None:
        raise ValueError("the trace has no gate inputs: record one with them")
    if len(trace.experts) < 10:
        raise ValueError(f"the trace has {len(trace.experts)} tokens, a 9:1 split needs 10")
    inputs = torch.from_numpy(trace.gate_inputs[:, layer].astype(np.float32))
    index = torch.from_numpy(trace.experts[:, target].astype(np.int64))  # [N, K], -1: none
    experts = expert_count(trace)
    chosen = torch.zeros(len(index), experts + 1).scatter_(1, index % (experts + 1), 1.0)
    return Samples(inputs, chosen[:, :experts])


def expert_count(trace: Trace) -> int:
    """Experts of a layer; without probabilities the highest one that was ever chosen tells."""
    if trace.probabilities is not None:
        return int(trace.probabilities.shape[-1])
    return int(trace.experts.max()) + 1


def fit(network: Callable[[Tensor], Tensor], parameters: list[Tensor], data: Samples, steps: int,
        seed: int) -> None:  # fmt: skip
    """Adam on the cross-entropy to an even share of the chosen experts, the rate falling to 0."""
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
    """Which share of the chosen experts is among as many of the best scores; both [N, E]."""
    count = int(chosen.sum(1).max())
    best = torch.zeros_like(chosen).scatter_(1, scores.topk(count, 1).indices, 1.0)
    return float((best * chosen).sum() / chosen.sum().clamp(min=1.0))


def train_layer(data: Samples, hidden: int, steps: int, seed: int) -> tuple[nn.Sequential, float]:
    """A network and its accuracy on the held-out tenth; input features are scaled to a root mean
    square of 1, which is folded into the first layer afterwards."""
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


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write the learned arrays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]


def read_trace(path: Path) -> Trace:
    """The trace, or an error for the command line."""
    try:
        return load_trace(path)
    except EngineError as error:
        raise typer.BadParameter(str(error)) from error


def main(
    trace: Annotated[Path, typer.Argument(help="trace with gate inputs")],
    output: Annotated[Path, typer.Option(help=".npz to write")],
    hidden: Annotated[int, typer.Option(help="width of the networks", min=1)] = 128,
    stride: Annotated[int, typer.Option(help="layers ahead", min=1, max=2)] = 1,
    steps: Annotated[int, typer.Option(help="batches of 256 tokens for each layer", min=1)] = 2000,
    seed: Annotated[int, typer.Option(help="of initial weights and order")] = 0,
) -> None:
    """Train a predictor on TRACE and print its accuracy on the held-out tenth."""
    recorded = read_trace(trace)
    arrays: dict[str, np.ndarray] = {"mlp.stride": np.array(stride)}
    accuracies = []
    for layer in range(recorded.layers - stride):
        try:
            data = samples(recorded, layer, layer + stride)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        network, accuracy = train_layer(data, hidden, steps, seed)
        accuracies.append(accuracy)
        print(f"layer {layer} -> {layer + stride}: held-out top-k accuracy {accuracy:.3f}")
        for name, linear in (("1", network[0]), ("2", network[2])):
            assert isinstance(linear, nn.Linear)
            arrays[f"mlp.{layer}.w{name}"] = linear.weight.detach().T.contiguous().numpy()
            arrays[f"mlp.{layer}.b{name}"] = linear.bias.detach().numpy()
    save_arrays(output, arrays)
    print(f"mean {sum(accuracies) / max(len(accuracies), 1):.3f}; written to {output}")


if __name__ == "__main__":
    typer.run(main)
