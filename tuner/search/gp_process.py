"""Optuna's Gaussian-process sampler as a program: `python -m tuner.search.gp_process`.

It computes with torch, which no process that holds a study imports. Reads one line of JSON (what
was tried) and answers with one line (what to try next). Keeps no state of a study but fitted
kernels.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import TrialState


def main() -> None:
    """Answers requests until stdin ends."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    sampler: Any = None
    for line in sys.stdin:
        asked = json.loads(line)
        if sampler is None:
            sampler = optuna.samplers.GPSampler(
                seed=asked["seed"],
                n_startup_trials=asked["startup"],
                deterministic_objective=False,
            )
        sys.stdout.write(json.dumps(suggest(sampler, asked)) + "\n")
        sys.stdout.flush()


def suggest(sampler: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the next point of a study that is rebuilt from its trials."""
    space = {
        name: optuna.distributions.json_to_distribution(text)
        for name, text in asked["space"].items()
    }
    study = optuna.create_study(directions=asked["directions"], sampler=sampler)
    limited = _limited(asked["trials"])
    for trial in asked["trials"]:
        found = trial["constraints"]
        study.add_trial(
            optuna.create_trial(
                params=trial["params"],
                distributions=space,
                values=trial["values"],
                constraints={name: found.get(name, 0.0) for name in limited} or None,
            )
        )
    for params in asked["running"]:
        study.add_trial(
            optuna.create_trial(state=TrialState.RUNNING, params=params, distributions=space)
        )
    return dict(study.ask(space).params)


def _limited(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """Constraints that differ between trials; modelling one that is always 0 only costs time."""
    names = trials[0]["constraints"] if trials else {}
    return [n for n in names if any(trial["constraints"].get(n, 0.0) for trial in trials)]


if __name__ == "__main__":
    main()
