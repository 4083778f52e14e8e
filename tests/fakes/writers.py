"""Processes that write trials into a study as its workers do, until told to stop."""

import multiprocessing
from typing import Any

from engine.contract.report import MemoryReading, Report, Sample, Sentinel
from tuner.store.database import open_database
from tuner.store.outcome import TrialOutcome
from tuner.store.repository import Store

WRITERS, MOST_EACH = 4, 5000
MEMORY = MemoryReading(0, 0, 0, 0, 0, "fake", 0, 0)


class Writers:
    """A block during which WRITERS processes write to the study `small`; each runs one trial at a
    time, and every other one fails."""

    def __init__(self, url: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._stop = context.Event()
        self._processes = [
            context.Process(target=_write, args=(url, writer, self._stop))
            for writer in range(WRITERS)
        ]

    def __enter__(self) -> None:
        for process in self._processes:
            process.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for process in self._processes:
            process.join(60)
            assert process.exitcode == 0


def _write(url: str, writer: int, stop: Any) -> None:
    store = Store(open_database(url))
    study = store.study("small")
    [model] = store.trials(study, [0])
    assert model.configuration_id is not None
    complete = TrialOutcome(
        "COMPLETE",
        scores=model.scores,
        violations=model.violations,
        configuration_id=model.configuration_id,
    )
    samples = tuple(Sample(name, 0, 9.0, "x") for name in ("output_tps", "tpot_ms"))
    report = Report({}, samples, MEMORY, Sentinel(1.0, 1.0))
    for place in range(MOST_EACH):
        if stop.is_set():
            break
        number = 1000 + place * WRITERS + writer
        trial = store.start_trial(study.id, number, dict(model.params), worker=str(writer))
        store.add_samples(model.configuration_id, study.machine_id, trial, report)
        failed = TrialOutcome("FAILED", "crash", "it fell")
        store.finish_trial(trial, failed if place % 2 else complete)
    store.database.close()
