"""Train gates that choose the next layer's experts: `python -m scripts.distill_pregates`.

Pre-gated MoE (arXiv 2308.12066) fine-tunes the model so that the gate in layer l selects for layer
l + 1; here the model stays and a linear gate for each layer is distilled from what the next layer
chose. In: a trace with gate inputs. Out: one .npz with `pregate.<layer>` [E, D] for
`prefetch.predictor: pregate`.

N tokens, D hidden, E experts.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn

from scripts.train_predictor import (
    Samples,
    feature_scale,
    fit,
    read_trace,
    samples,
    save_arrays,
    top_k_accuracy,
)


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


def main(
    trace: Annotated[Path, typer.Argument(help="trace with gate inputs")],
    output: Annotated[Path, typer.Option(help=".npz to write")],
    steps: Annotated[int, typer.Option(help="batches of 256 tokens for each layer", min=1)] = 2000,
    seed: Annotated[int, typer.Option(help="of initial weights and order")] = 0,
) -> None:
    """Distill pre-gates from TRACE and print their accuracy on the held-out tenth."""
    recorded = read_trace(trace)
    arrays: dict[str, np.ndarray] = {}
    for layer in range(recorded.layers - 1):
        try:
            data = samples(recorded, layer, layer + 1)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        gate, accuracy = distill(data, steps, seed)
        arrays[f"pregate.{layer}"] = gate.numpy()
        print(f"layer {layer} -> {layer + 1}: held-out top-k accuracy {accuracy:.3f}")
    save_arrays(output, arrays)
    print(f"written to {output}")


if __name__ == "__main__":
    typer.run(main)
