"""Server-sent events of a study: what comes, in which order, from where after a pause."""

import json
from dataclasses import dataclass, replace
from typing import Any

import anyio
import pytest
from fastapi.testclient import TestClient

from engine.contract.requests import Workload
from engine.facts.machine import probe
from tests.fakes.fake_engine import facts_of
from tests.tuner.service.made import REQUEST, MadeChild, client_of, until
from tuner.definition.study import StudyDefinition
from tuner.service.events import EventStream
from tuner.service.service import Service, open_service
from tuner.service.settings import ServiceSettings
from tuner.store.outcome import TrialOutcome
from tuner.store.repository import Store
from tuner.study.stages import Activity, Stage

WRITTEN = "2026-11-30T00:00:00+00:00"


@dataclass(frozen=True)
class Event:
    """One event as a browser reads it."""

    kind: str
    id: str
    data: dict[str, Any]


def read(text: str) -> list[Event]:
    """The events of a stream; comments and `retry` are none."""
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line[:1] != ":")
        if "data" in fields:
            events.append(Event(fields["event"], fields["id"], json.loads(fields["data"])))
    return events


async def take(stream: EventStream, count: int) -> list[Event]:
    """The first events of a stream that may not end."""
    found: list[Event] = []
    with anyio.fail_after(20):
        async for line in stream.lines():
            found += read(line)
            if len(found) >= count:
                break
    return found


@dataclass(frozen=True)
class Running:
    """A study under way: its job runs, its trials are written here."""

    store: Store
    study_id: int

    def keep_progress(self, stage: Stage) -> None:
        activity = Activity(stage, 1, 4, 12.0, 90.0, 0, 0, 10, 30.0, 660.0)
        self.store.keep_progress(self.study_id, {**activity.to_json(), "time": WRITTEN})

    def end_trial(self, number: int) -> None:
        trial = self.store.start_trial(self.study_id, number, {"precision.bits": 8})
        self.store.finish_trial(trial, TrialOutcome("COMPLETE", scores={"output_tps": 1.0}))


@pytest.fixture
def running(service: Service, client: TestClient, children: list[MadeChild]) -> Running:
    client.post("/v1/studies", json=REQUEST)
    until(lambda: children)
    store = Store(service.jobs.database)
    definition = StudyDefinition(model="demo", name="first")
    study = store.begin_study(definition, facts_of("demo"), probe(), Workload("w", ("a",)))
    return Running(store, study.id)


def test_a_stream_tells_the_state_then_each_trial(service: Service, running: Running):
    async def follow() -> list[Event]:
        stream = EventStream(service, "first")
        first = await take(stream, 1)
        running.end_trial(0)
        running.end_trial(1)
        return first + await take(stream, 3)

    events = anyio.run(follow)
    assert [(e.kind, e.id) for e in events] == [
        ("state", "0"), ("trial", "1"), ("trial", "2"), ("state", "2"),
    ]  # fmt: skip
    assert [e.data["number"] for e in events if e.kind == "trial"] == [0, 1]
    assert events[-1].data["trials"] == 2


def test_status_and_stream_tell_what_the_study_does(
    service: Service, client: TestClient, running: Running
):
    assert client.get("/v1/studies/first").json()["progress"] is None

    async def follow() -> list[Event]:
        stream = EventStream(service, "first")
        await take(stream, 1)
        running.keep_progress("packing")
        return await take(stream, 1)

    told = anyio.run(follow)[0].data["progress"]
    assert told == client.get("/v1/studies/first").json()["progress"]
    found = [told[name] for name in ("stage", "done", "total", "trial_left_s", "study_left_s")]
    assert found == ["packing", 1, 4, 30.0, 660.0]
    running.store.set_study_state(running.study_id, "FINISHED")
    running.keep_progress("packing")  # too late: it does not run any more
    assert client.get("/v1/studies/first").json()["progress"] is None


def test_a_client_that_comes_back_misses_nothing(client: TestClient, running: Running, children):
    for number in range(3):
        running.end_trial(number)
    children[0].end(0)
    until(lambda: client.get("/v1/studies/first").json()["job"]["state"] == "DONE")
    running.store.set_study_state(running.study_id, "FINISHED")
    answer = client.get("/v1/studies/first/events", headers={"Last-Event-ID": "2"})
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert [(e.kind, e.id) for e in read(answer.text)] == [("trial", "3"), ("end", "end")]
    again = client.get("/v1/studies/first/events", headers={"Last-Event-ID": "end"})
    assert (again.status_code, again.text) == (204, "")


def test_trials_come_in_the_order_in_which_they_ended(service: Service, running: Running):
    slow = running.store.start_trial(running.study_id, 0, {})
    running.end_trial(1)
    running.store.finish_trial(slow, TrialOutcome("FAILED", "crash", "it crashed"))

    async def follow() -> list[Event]:
        return await take(EventStream(service, "first"), 2)

    events = anyio.run(follow)
    assert [e.data["number"] for e in events] == [1, 0]
    assert events[1].data["reason"] == "it crashed"


def test_a_quiet_stream_shows_that_it_lives(settings: ServiceSettings):
    quick = replace(settings, heartbeat_s=0.05)

    async def comments(service: Service) -> None:
        with anyio.fail_after(20):
            async for line in EventStream(service, "first").lines():
                if line.startswith(":"):
                    return

    with open_service(quick, lambda *_: MadeChild()) as service, client_of(service) as client:
        client.post("/v1/studies", json=REQUEST)
        anyio.run(comments, service)


def test_a_stream_ends_when_the_service_closes(service: Service, running: Running):
    async def follow() -> None:
        with anyio.fail_after(20):
            async for _ in EventStream(service, "first").lines():
                service.closing.set()

    anyio.run(follow)


def test_only_so_many_streams_are_open_at_once(served: Service):
    narrow = replace(served, streams=replace(served.streams, limit=0))
    with client_of(narrow) as client:
        answer = client.get("/v1/studies/small/events")
    assert answer.status_code == 429
    assert "event streams are open" in answer.json()["error"]["message"]


def test_a_stream_that_ended_makes_room(served: Service):
    with client_of(served) as client:
        for _ in range(served.streams.limit + 1):
            last = client.get("/v1/studies/small/events")
            assert last.status_code == 200
    events = read(last.text)
    assert [e.kind for e in events] == ["trial"] * 5 + ["end"]
