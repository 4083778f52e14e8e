"""Measuring the front once more, interleaved, in fresh processes.

The best of many noisy trials is flattered: what is exported of a member of the front is what it did
again after the search, in a process that had run nothing before.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.config.settings import EngineConfig
from engine.contract.requests import Workload
from tuner.engine_client.session import EngineSession
from tuner.errors import WorkerError
from tuner.store.repository import Store
from tuner.store.snapshots import StudySnapshot, TrialSnapshot

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Confirmation:
    """Confirms members of one study's front. notify: called with a phrase at each step."""

    session: EngineSession
    store: Store
    study: StudySnapshot
    workload: Workload
    seed: int
    notify: Callable[[str], None]

    def run(self, members: Sequence[TrialSnapshot], rounds: int, until_s: float | None) -> int:
        """One repeat of every member a round, each round in a process of its own, every other
        round backwards. Returns how many repeats were kept.

        rounds: as many as each member should have in all; until_s: of time.monotonic(), after
        which no repeat starts. A member that fails here is left as it was measured.
        """
        kept = 0
        for number in range(rounds):
            wanted = [m for m in members if self._confirmed(m) <= number]
            if not wanted:
                continue
            self.session.close()
            for member in wanted[:: -1 if number % 2 else 1]:
                if until_s is not None and time.monotonic() > until_s:
                    return kept
                self.notify(f"confirming trial {member.number}, round {number + 1} of {rounds}")
                kept += self._repeat(member)
        return kept

    def _repeat(self, member: TrialSnapshot) -> bool:
        assert member.config is not None
        assert member.configuration_id is not None
        done = self._confirmed(member)
        try:
            self.session.configure(EngineConfig.from_dict(dict(member.config)))
            report = self.session.measure(
                self.workload, repeats=1, warm_up=True, seed=self.seed + done
            )
        except WorkerError as error:
            log.warning("trial %s could not be confirmed: %s", member.number, error)
            return False
        machine = self.study.machine_id
        self.store.add_samples(member.configuration_id, machine, None, report, role="confirm")
        return True

    def _confirmed(self, member: TrialSnapshot) -> int:
        assert member.configuration_id is not None
        pool = self.store.pool(member.configuration_id, self.study.machine_id)
        return len(pool.confirming.get("output_tps", ()))
