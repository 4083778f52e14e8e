"""Draws a study's Pareto front as SVG.

    tune show STUDY --json | python docs/build/front_figure.py FILE.svg

In: the document of `tune show STUDY --json` on stdin. Out: throughput against time per token, one
dot for each measured trial; the front is coloured, the recommended trial is a star. docs/front.svg:

    python docs/build/grid_document.py disk_bound | python docs/build/front_figure.py docs/front.svg
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt

X, Y = "output_tps", "tpot_ms"
MEASURED = ("COMPLETE",)
LABEL_FRACTION = 0.32  # of the width, for the labels at the right
GREY, BLUE, VERMILION = "#b3b3b3", "#0072b2", "#d55e00"  # Okabe and Ito's
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "expertune",
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
}

Trial = Mapping[str, Any]


def draw(document: Mapping[str, Any], file: Path) -> None:
    """Write the figure of one study."""
    front = [trial for trial in document["front"] if trial["scores"]]
    numbers = {trial["number"] for trial in front}
    others = [
        trial
        for trial in document["trials"]
        if trial["state"] in MEASURED and trial["number"] not in numbers
    ]
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8, 4.4))
        axes.scatter(*_columns(others), s=16, color=GREY, label=f"{len(others)} other trials")
        axes.scatter(
            *_columns(front), s=60, color=BLUE, zorder=3, label=f"{len(front)} on the front"
        )
        chosen = [t for t in front if t["number"] == document["recommended"]]
        axes.scatter(
            *_columns(chosen), s=260, marker="*", color=VERMILION, zorder=4, label="recommended"
        )
        for trial in _labelled(front, chosen):
            axes.annotate(
                _settings(trial),
                (trial["scores"][X], trial["scores"][Y]),
                xytext=(12, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        low, high = axes.get_xlim()
        axes.set_xlim(low, high + LABEL_FRACTION * (high - low))
        axes.set_yscale("log")
        axes.set_xlabel("output tokens per second (more is better)")
        axes.set_ylabel("ms per token (less is better)")
        axes.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        axes.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        axes.grid(color="#eeeeee")
        axes.set_axisbelow(True)
        axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 1.02))
        figure.tight_layout()
        figure.savefig(file, metadata={"Date": None})


def _columns(trials: Iterable[Trial]) -> tuple[list[float], list[float]]:
    scores = [trial["scores"] for trial in trials]
    return [one[X] for one in scores], [one[Y] for one in scores]


def _labelled(front: list[Trial], chosen: list[Trial]) -> list[Trial]:
    """The fastest, the recommended and the one of the shortest time per token, each once."""
    fastest = max(front, key=lambda trial: trial["scores"][X])
    shortest = min(front, key=lambda trial: trial["scores"][Y])
    found = {trial["number"]: trial for trial in (fastest, *chosen, shortest)}
    return list(found.values())


def _settings(trial: Trial) -> str:
    """As the command prints them, the last word of each path; two on a line."""
    words = [f"{path.rpartition('.')[2]}={value}" for path, value in trial["params"].items()]
    return "\n".join(" ".join(words[i : i + 2]) for i in range(0, len(words), 2))


if __name__ == "__main__":
    draw(json.load(sys.stdin), Path(sys.argv[1]))
