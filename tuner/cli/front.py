"""Prints a front in the terminal: a table with intervals and a character plot."""

from __future__ import annotations

from collections.abc import Sequence

import plotext

from engine.types import format_bytes
from tuner.cli.output import print_table, print_text
from tuner.deployment.defaults import changed_paths
from tuner.pareto.budget_curve import CurvePoint, fastest_tps
from tuner.pareto.figures import format_figure
from tuner.pareto.front import Front
from tuner.pareto.probability import near_front, on_front

PLOT_COLUMNS, PLOT_ROWS = 72, 18


def print_front(front: Front) -> None:
    """Prints the front as a table with the recommended trial marked, and the settings in which
    a member differs from the defaults; nothing for an empty front."""
    if not front.members:
        return
    knee = front.knee
    changed = {name for member in front.members for name in changed_paths(member.params)}
    names = [name for name in knee.params if name in changed]
    probability = on_front(front)
    rows = []
    for trial in front.members:
        mark = " *" if trial.id == knee.id else ""
        figures = [format_figure(trial, name) for name in front.objectives]
        certainty = f"{probability[trial.number]:.0%}"
        settings = (trial.params.get(n) for n in names)
        rows.append([f"{trial.number}{mark}", *figures, trial.source, certainty, *settings])
    objectives = [f"#{name}" for name in front.objectives]
    columns = ["#trial", *objectives, "figures", "#probability", *names]
    print_table("Pareto front (95 % intervals; * recommended)", columns, rows)
    near = [
        f"trial {number} ({fraction:.0%})" for number, fraction in near_front(front, probability)
    ]
    if near:
        print_text(f"within noise of the front: {', '.join(near)}")


def print_curve(points: Sequence[CurvePoint]) -> None:
    """Prints the front of each budget and the gain of the next gigabyte; nothing for one budget."""
    if len(points) < 2:
        return
    rows = []
    for point in points:
        knee = point.front.knee if point.front.members else None
        rows.append(
            [
                format_bytes(point.budget_bytes),
                "-" if knee is None else knee.number,
                *(None if knee is None else knee.scores[o] for o in point.front.objectives),
                fastest_tps(point.front),
                point.gained_tps,
            ]
        )
    names = [f"#{name}" for name in points[0].front.objectives]
    columns = ["budget", "#trial", *names, "#fastest tokens/s", "#more for each GB"]
    print_table("Budget curve: the recommended config of each budget", columns, rows)


def plot_front(front: Front) -> None:
    """Plots trials in the first and the last objective; nothing for fewer than two points."""
    if len(front.members) < 2 or len(front.objectives) < 2:
        return
    x, y = front.objectives[0], front.objectives[-1]
    others = [t for t in front.trials if t.feasible and {x, y} <= set(t.scores)]
    figure = plotext.figure
    figure.clear()
    figure.theme("colorless")
    figure.plot_size(PLOT_COLUMNS, PLOT_ROWS)
    for trials, marker in ((others, "."), (front.members, "O")):
        points = figure.signal(
            [t.scores[x] for t in trials], [t.scores[y] for t in trials], marker=marker
        )
        figure.draw(points)
    figure.title("trials (.) and front (O)")
    figure.label(x, axis="x")
    figure.label(y, axis="y")
    print_text(plotext.uncolorize(str(figure.build())))
