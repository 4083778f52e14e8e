"""Prints a grid of experiments/grids/ as `tune show --json` prints a study.

    python docs/build/grid_document.py disk_bound

Every configuration of a grid was measured, so the front is the true one of that space. Means only:
for a picture, not for decisions.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

from tuner.folders import SOURCE
from tuner.pareto import dominance

SPEEDS = ("output_tps", "tpot_ms")
SIGNS = (1, -1, 1)  # of the speeds and quality
MIN_QUALITY = 0.9


def document(path: Path) -> dict[str, Any]:
    """path: the grid's definition, with its measurements beside it."""
    definition = yaml.safe_load(path.read_text(encoding="utf-8"))
    kept = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["quality"].values()
    quality = dict(zip(definition["space"]["precision.bits"], kept, strict=True))
    trials = [
        {"number": n, "state": "COMPLETE", "params": point, "scores": speeds}
        for n, (point, speeds) in enumerate(_means(path.with_suffix(".jsonl")))
    ]
    for trial in trials:
        trial["scores"]["quality"] = quality[trial["params"]["precision.bits"]]
    front = [trials[i] for i in dominance.front([_vector(t) for t in trials], SIGNS)]
    good = [trial for trial in front if trial["scores"]["quality"] >= MIN_QUALITY]
    knee = good[dominance.knee([_vector(trial) for trial in good], SIGNS)]
    return {
        "study": {"name": definition["name"]},
        "trials": trials,
        "front": front,
        "recommended": knee["number"],
    }


def _means(path: Path) -> list[tuple[dict[str, Any], dict[str, float]]]:
    """Each configuration with its speeds, every round with the same weight."""
    rounds = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rounds[json.dumps(row["point"])].append(
            {name: statistics.fmean(one[name] for one in row["samples"]) for name in SPEEDS}
        )
    return [
        (json.loads(point), {name: statistics.fmean(one[name] for one in runs) for name in SPEEDS})
        for point, runs in rounds.items()
    ]


def _vector(trial: dict[str, Any]) -> list[float]:
    return [trial["scores"][name] for name in (*SPEEDS, "quality")]


if __name__ == "__main__":
    json.dump(document(SOURCE / "experiments" / "grids" / f"{sys.argv[1]}.yaml"), sys.stdout)
