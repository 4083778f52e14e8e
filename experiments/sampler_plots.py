"""Curves of hypervolume over engine seconds: quantiles, CSV, SVG."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.reference_grid import Grid

MOST_FRACTION = 0.5  # of the grid's seconds: a run that takes longer counts as not arrived

BUDGET = 0.05

Job = tuple[str, int]  # a sampler and a seed


class Step(NamedTuple):
    """State after a trial: engine seconds, hypervolume fraction, seconds of computation so far."""

    spent_s: float
    fraction: float
    own_s: float


Curve = list[Step]


def write_quantiles(
    grid: Grid, names: Sequence[str], curves: Mapping[Job, Curve], path: Path
) -> None:
    """Writes median and quartiles over seeds of the fraction found, by engine seconds."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["sampler", "engine_s", "low", "median", "high"])
        for name in names:
            for row in _quantiles(grid, curves_of(curves, name)):
                writer.writerow([name, *(f"{value:.4f}" for value in row)])


def plot(grid: Grid, names: Sequence[str], curves: Mapping[Job, Curve], path: Path) -> None:
    """Draws the same quantiles as a figure."""
    with _drawing() as (figure, axes):
        for name, style in zip(names, _styles(), strict=False):
            seconds, low, median, high = np.array(_quantiles(grid, curves_of(curves, name))).T
            axes.step(seconds, median, where="post", label=name, **style)
            axes.fill_between(seconds, low, high, step="post", alpha=0.12, color=style["color"])
        axes.axvline(BUDGET * grid.total_s, color="0.6", linewidth=0.8)
        axes.set(
            xscale="log",
            xlabel="engine seconds",
            ylabel="fraction of the grid's hypervolume",
            title=f"{grid.definition.name}: medians and quartiles over seeds",
            ylim=(0.5, 1.01),
        )
        axes.legend(loc="lower right", fontsize=8)
        figure.savefig(path, metadata={"Date": None})


@contextlib.contextmanager
def _drawing() -> Iterator[tuple[Any, Any]]:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "expertune"  # makes the file reproducible
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    try:
        yield figure, axes
    finally:
        pyplot.close(figure)


def _styles() -> Iterator[dict[str, Any]]:
    """Okabe and Ito's colours, and dashes for readers who cannot tell them apart."""
    colors = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2")
    dashes = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
    for color, dash in zip(colors, dashes, strict=True):
        yield {"color": color, "linestyle": dash, "linewidth": 1.6}


def _quantiles(grid: Grid, curves: Sequence[Curve]) -> list[tuple[float, ...]]:
    moments = np.geomspace(0.005, MOST_FRACTION, 60) * grid.total_s
    found = []
    for seconds in moments:
        fractions = [fraction_at(curve, seconds) for curve in curves]
        found.append((float(seconds), *map(float, np.quantile(fractions, (0.25, 0.5, 0.75)))))
    return found


def curves_of(curves: Mapping[Job, Curve], name: str) -> list[Curve]:
    return [curve for (sampler, _), curve in curves.items() if sampler == name]


def fraction_at(curve: Curve, seconds: float) -> float:
    """The fraction of the hypervolume found by then."""
    return max((step.fraction for step in curve if step.spent_s <= seconds), default=0.0)
