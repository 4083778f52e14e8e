"""The Gaussian-process sampler for Optuna's storage and queue; a child process computes.

In: a study's trials. Out: points. If the child fails or hangs, the point is drawn at random with a
warning; the next one gets a new child.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import subprocess
import threading
from typing import Any

import optuna
from optuna.trial import TrialState

from tuner.processes.start import start_module

log = logging.getLogger(__name__)

ANSWER_S = 120.0  # the first one imports torch
ENDING_S = 5.0


class ChildGpSampler(optuna.samplers.BaseSampler):  # type: ignore[misc]  # optuna is not followed
    """Close it when done: that ends the child. startup: number of initial points drawn at
    random."""

    def __init__(self, seed: int, startup: int) -> None:
        self._seed = seed
        self._startup = startup
        self._random = optuna.samplers.RandomSampler(seed=seed)
        self._space = optuna.search_space.IntersectionSearchSpace()
        self._child: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        """The parameters common to all trials so far that can vary."""
        common = self._space.calculate(study)
        return {name: one for name, one in common.items() if not one.single()}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        """A point from the child; {} has it drawn at random."""
        if not search_space or trial.system_attrs.get("fixed_params"):
            return {}
        states = (TrialState.COMPLETE, TrialState.RUNNING)
        trials = study.get_trials(deepcopy=False, states=states)
        done = [one for one in trials if one.state == TrialState.COMPLETE]
        if len(done) < self._startup:
            return {}
        running = [one.params for one in trials if one not in done and one.number != trial.number]
        asked = {
            "seed": self._seed,
            "startup": self._startup,
            "directions": [direction.name.lower() for direction in study.directions],
            "space": {
                name: optuna.distributions.distribution_to_json(one)
                for name, one in search_space.items()
            },
            "trials": [
                {
                    "params": {name: one.params[name] for name in search_space},
                    "values": one.values,
                    "constraints": one.constraints,
                }
                for one in done
            ],
            "running": [
                {name: params[name] for name in search_space}
                for params in running
                if search_space.keys() <= params.keys()
            ],
        }
        return self._ask(json.dumps(asked))

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        """Draws a value at random."""
        return self._random.sample_independent(study, trial, name, distribution)

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        """Does nothing: the child receives all trials each time."""

    def close(self) -> None:
        """Ends the child."""
        child, self._child = self._child, None
        if child is None:
            return
        assert child.stdin is not None
        with contextlib.suppress(OSError):  # it died before it read everything
            child.stdin.close()
        try:
            child.wait(timeout=ENDING_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def _ask(self, line: str) -> dict[str, Any]:
        try:
            child = self._child or self._start()
            assert child.stdin is not None
            child.stdin.write(line + "\n")
            child.stdin.flush()
            answer = self._answers.get(timeout=ANSWER_S)
            point: dict[str, Any] = json.loads(answer)
        except (OSError, queue.Empty, ValueError) as error:
            reason = str(error) or f"no answer within {ANSWER_S:.0f} s"
            log.warning("--sampler gp drew a point at random, since its process failed: %s", reason)
            if self._child is not None:
                self._child.kill()
            self.close()
            return {}
        return point

    def _start(self) -> subprocess.Popen[str]:
        self._answers = queue.Queue()
        self._child = start_module(
            "tuner.search.gp_process",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        threading.Thread(target=_read, args=(self._child, self._answers), daemon=True).start()
        return self._child


def _read(child: subprocess.Popen[str], answers: queue.Queue[str]) -> None:
    """Puts the child's lines into the queue; an empty one marks its end."""
    assert child.stdout is not None
    with child.stdout:
        for line in child.stdout:
            answers.put(line)
    answers.put("")
