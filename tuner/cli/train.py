"""`tune train`: trains predictors and fits evictions on a recorded trace."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Annotated, Any

import typer

from engine.policy.learned import learned_path
from engine.trace.trace import load_trace
from tuner.cli import options
from tuner.cli.counts import MOST_COUNT
from tuner.cli.output import print_json, print_table, print_text
from tuner.definition.study import MOST_SEED
from tuner.errors import StudyError, UsageError
from tuner.folders import cache_folder
from tuner.processes.start import end_process, start_module
from tuner.replay.predict import facts_of

app = typer.Typer(
    name="train", help="Train predictors and fit evictions on a trace.", no_args_is_help=True
)
TraceFile = Annotated[Path, typer.Argument(help="A trace of `tune trace`.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="The .npz; default: where runs look for it.")
]
Steps = Annotated[
    int, typer.Option(min=1, max=MOST_COUNT, help="Batches of 256 tokens for each layer.")
]
Seed = Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of initial weights and order.")]


@app.command()
def predictor(
    trace: TraceFile,
    output: Output = None,
    hidden: Annotated[
        int, typer.Option(min=1, max=MOST_COUNT, help="Width of the networks.")
    ] = 128,
    stride: Annotated[int, typer.Option(min=1, max=2, help="Layers ahead.")] = 1,
    steps: Steps = 2000,
    seed: Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Train the networks of `prefetch.predictor: mlp` (ProMoE) on a trace with gate inputs.

    Example: tune train predictor routing.npz --stride 1
    """
    learned = {"hidden": hidden, "stride": stride, "steps": steps, "seed": seed}
    _print_networks(_train("predictor", trace, _output(trace, output), learned), stride, as_json)


@app.command()
def pregates(
    trace: TraceFile,
    output: Output = None,
    steps: Steps = 2000,
    seed: Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Distill the gates of `prefetch.predictor: pregate` (Pre-gated MoE) from a trace.

    Example: tune train pregates routing.npz
    """
    learned = {"steps": steps, "seed": seed}
    _print_networks(_train("pregates", trace, _output(trace, output), learned), 1, as_json)


@app.command()
def eviction(
    trace: TraceFile,
    percent: Annotated[float, typer.Option(min=0, max=100, help="Of the experts in slots.")] = 25.0,
    scope: Annotated[str, typer.Option(help="layer or shared.")] = "layer",
    trials: Annotated[int, typer.Option(min=1, max=MOST_COUNT, help="Weights to try.")] = 64,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of the sampler.")] = 0,
    as_json: options.Json = False,
) -> None:
    """Fit the weights of `cache.eviction: hobbit` to a trace, beside other evictions.

    Example: tune train eviction routing.npz --percent 25
    """
    learned = {"percent": percent, "scope": scope, "trials": trials, "seed": seed}
    found = _train("eviction", trace, None, learned)
    if as_json:
        print_json(found)
        return
    rates = sorted(found["hit_rates"].items(), key=lambda item: -item[1])
    title = f"Hit rates with {found['slots']} slots"
    print_table(title, ["eviction", "#hit rate"], [[n, f"{rate:.4f}"] for n, rate in rates])
    weights = ", ".join(f"{weight:.4f}" for weight in found["weights"])
    print_text(f"cache.options.weights: [{weights}]")


def _output(trace: Path, output: Path | None) -> Path:
    return output or learned_path(facts_of(load_trace(trace)), cache_folder())


def _train(what: str, trace: Path, output: Path | None, learned: dict[str, Any]) -> dict[str, Any]:
    """Trains in a separate process, since this one never imports torch."""
    request = {"what": what, "trace": str(trace), **learned}
    if output is not None:
        request["output"] = str(output)
    child = start_module("engine.train", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        text, _ = child.communicate(json.dumps(request))
    finally:
        end_process(child)
    if not text.strip():
        raise StudyError(f"training ended with code {child.returncode}")
    answer: dict[str, Any] = json.loads(text)
    if "error" in answer:
        raise (UsageError if answer["exit_code"] == 2 else StudyError)(answer["error"])
    return answer


def _print_networks(found: dict[str, Any], stride: int, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    rows = [
        [f"{layer} -> {layer + stride}", f"{accuracy:.3f}"]
        for layer, accuracy in enumerate(found["accuracies"])
    ]
    print_table("Top-k accuracy on the held-out tenth", ["layers", "#accuracy"], rows)
    print_text(f"written to {found['output']}")
