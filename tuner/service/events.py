"""Streams a study's progress as server-sent events read from the store.

`trial`: one ended; `state`: the study or its job changed; `end`: nothing more will come. The id of
an event is the number of ended trials so far, so that a client which reconnects with it as
Last-Event-ID misses nothing; the last id is `end`.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.to_thread import run_sync

from tuner.service.documents import StudyDocument
from tuner.service.service import Service
from tuner.store.service import ended_trials
from tuner.store.snapshots import TrialSnapshot

END = "end"
RETRY_MS = 2000
TRIAL_KEYS = (
    "number", "state", "failure", "reason", "feasible", "params", "scores", "source", "finished"
)  # fmt: skip


@dataclass(frozen=True)
class News:
    """The changes since the last read. over: nothing runs, and all trials are included."""

    study: StudyDocument
    trials: tuple[TrialSnapshot, ...]
    over: bool


@dataclass
class EventStream:
    """The events of one study for one client. seen: number of ended trials that it already
    received."""

    service: Service
    name: str
    seen: int = 0
    _told: dict[str, Any] = field(default_factory=dict, init=False)

    async def lines(self) -> AsyncIterator[str]:
        """The text of the stream, until the study is over or the service closes."""
        yield f"retry: {RETRY_MS}\n\n"
        last_s = time.monotonic()
        while not self.service.closing.is_set():
            news = await run_sync(self.read)
            for event in self._events(news):
                yield event
                last_s = time.monotonic()
            if news.over:
                return
            if time.monotonic() - last_s >= self.service.settings.heartbeat_s:
                yield ": still here\n\n"
                last_s = time.monotonic()
            await anyio.sleep(self.service.settings.poll_s)

    def read(self) -> News:
        """Reads the changes; the state first, so that a finished study has no further trials."""
        found = self.service.find(self.name)
        trials: tuple[TrialSnapshot, ...] = ()
        if found.study is not None:
            trials = ended_trials(self.service.view.database, found.study.id, self.seen)
        return News(found.document, trials, not found.under_way)

    def _events(self, news: News) -> list[str]:
        found = []
        for trial in news.trials:
            self.seen += 1
            found.append(_event("trial", str(self.seen), _trial(trial)))
        document = news.study.model_dump(mode="json")
        if news.over:
            found.append(_event(END, END, document))
        elif _without_time(document) != self._told:
            found.append(_event("state", str(self.seen), document))
        self._told = _without_time(document)
        return found


def _without_time(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != "updated"}


def _trial(trial: TrialSnapshot) -> dict[str, Any]:
    """The fields for a live view; GET .../trials has the rest."""
    whole = trial.to_json()
    return {name: whole[name] for name in TRIAL_KEYS}


def _event(kind: str, event_id: str, data: dict[str, Any]) -> str:
    return f"id: {event_id}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"
