"""Confirms the front: measures its members again, interleaved, in fresh processes.

Picking the best of many noisy trials overstates it, so the exported figures of a front member were
measured again after the search, in a process that had run nothing before. Pruned trials that have
become competitive since are finished first.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.config.settings import EngineConfig
from tuner.errors import WorkerError
from tuner.store.snapshots import TrialSnapshot
from tuner.study.context import StudyContext, StudyState
from tuner.study.pruning import competitive
from tuner.study.trial import TrialRunner

log = logging.getLogger(__name__)

MOST_CONFIRMED = 8
MOST_PASSES = 3


@dataclass(frozen=True)
class Confirmation:
    """Confirms the front of one study, within the study's --timeout."""

    context: StudyContext
    state: StudyState
    runner: TrialRunner

    def run(self, rounds: int) -> None:
        """Confirms the front, finishes pruned trials that became competitive, and confirms the
        front that results. rounds: total repeats that each member should have."""
        until_s = None
        if self.context.definition.timeout_s:
            until_s = self.context.started_s + self.context.definition.timeout_s
        tried: set[int] = set()
        for left in reversed(range(MOST_PASSES)):
            self.state.refresh()
            confirmed = self.confirm(self.state.members[:MOST_CONFIRMED], rounds, until_s)
            # trials that the last pass finished could not be confirmed any more
            finished = self._reevaluate(until_s, tried) if left else 0
            if not finished and not confirmed:
                break
        self.state.refresh()

    def confirm(self, members: Sequence[TrialSnapshot], rounds: int, until_s: float | None) -> int:
        """Measures one repeat of every member per round, each in its own process, every other round
        in reverse order. Returns how many repeats were kept.

        until_s: of time.monotonic(), by which each repeat has to end as far as is known: it takes
        what the member's last one took, else what the longest took. A member that fails here keeps
        its earlier measurements.
        """
        kept = done = 0
        took_s: dict[int, float] = {}  # by trial
        total = sum(max(0, rounds - self._confirmed(member)) for member in members)
        for number in range(rounds):
            due = [m for m in members if self._confirmed(m) <= number]
            if not due:
                continue
            self.context.session.close()
            for member in due[:: -1 if number % 2 else 1]:
                began_s = time.monotonic()
                takes_s = took_s.get(member.id, max(took_s.values(), default=0.0))
                if until_s is not None and began_s + takes_s > until_s:
                    return kept
                self.context.progress.confirming(member.number, done, total)
                kept += self._repeat(member)
                took_s[member.id] = time.monotonic() - began_s
                done += 1
        return kept

    def _repeat(self, member: TrialSnapshot) -> bool:
        assert member.config is not None
        assert member.configuration_id is not None
        seed = self.context.definition.seed + self._confirmed(member)
        session = self.context.session
        try:
            session.configure(EngineConfig.from_dict(dict(member.config)))
            report = session.measure(self.context.workload, repeats=1, warm_up=True, seed=seed)
        except WorkerError as error:
            log.warning("trial %s could not be confirmed: %s", member.number, error)
            return False
        machine = self.context.study.machine_id
        configuration = member.configuration_id
        self.context.store.add_samples(configuration, machine, None, report, role="confirm")
        return True

    def _confirmed(self, member: TrialSnapshot) -> int:
        assert member.configuration_id is not None
        pool = self.context.store.pool(member.configuration_id, self.context.study.machine_id)
        return len(pool.confirming.get("output_tps", ()))

    def _reevaluate(self, until_s: float | None, tried: set[int]) -> int:
        """Finishes pruned trials that no incumbent dominates any more, each once; returns how many
        ended."""
        self.state.refresh()
        every = competitive(self.state.trials, self.state.incumbents, self.context.samples)
        done = 0
        for trial in [trial for trial in every if trial.id not in tried][:MOST_CONFIRMED]:
            if until_s is not None and time.monotonic() + (trial.engine_s or 0.0) > until_s:
                break
            if self.context.interrupted():
                raise KeyboardInterrupt
            tried.add(trial.id)
            self.context.progress.trial_began(trial.number)
            outcome = self.runner.run(trial.id, trial.params)
            if outcome.state == "FAILED":  # its measurements are kept
                log.warning("trial %d could not be finished: %s", trial.number, outcome.reason)
                continue
            spent_s = (trial.engine_s or 0.0) + (outcome.engine_s or 0.0)
            outcome = replace(outcome, predicted=trial.predicted, engine_s=spent_s)
            self.context.store.finish_trial(trial.id, outcome)
            done += 1
        return done
