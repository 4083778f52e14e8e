"""Service: one open service, with its store, its queue and its runner."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from fastapi import Request

from tuner.errors import MissingStudyError
from tuner.service.best import BestConfigs
from tuner.service.documents import StudyDocument
from tuner.service.metrics import ServiceMetrics
from tuner.service.runner import JobRunner, Start, start_job
from tuner.service.settings import ServiceSettings
from tuner.service.streams import Streams
from tuner.store.database import open_database, open_read_only
from tuner.store.lock import service_lock
from tuner.store.repository import Store
from tuner.store.service import Jobs, JobSnapshot, Tokens
from tuner.store.snapshots import StudySnapshot


@dataclass(frozen=True)
class FoundStudy:
    """A study by name. study: None before it has begun; job: None if it was not requested here."""

    study: StudySnapshot | None
    job: JobSnapshot | None

    @property
    def document(self) -> StudyDocument:
        """The study as clients see it."""
        if self.study is not None:
            return StudyDocument.of(self.study, self.job)
        assert self.job is not None
        return StudyDocument.waiting(self.job)

    @property
    def under_way(self) -> bool:
        """Whether it waits or runs, here or started by another process."""
        if self.job is not None and self.job.under_way:
            return True
        return self.study is not None and self.study.state == "RUNNING"


@dataclass(frozen=True)
class Service:
    """The resources of requests. view: the store, read-only; closing: set once the service must
    end."""

    settings: ServiceSettings
    view: Store
    jobs: Jobs
    runner: JobRunner
    best: BestConfigs
    metrics: ServiceMetrics
    streams: Streams
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def tokens(self) -> Tokens:
        """Tokens for look-up; read-only."""
        return Tokens(self.view.database)

    @property
    def seen_jobs(self) -> Jobs:
        """The queue, read-only."""
        return Jobs(self.view.database)

    def find(self, name: str) -> FoundStudy:
        """The study or job of this name; raises MissingStudyError if there is neither."""
        job = self.seen_jobs.latest(name).get(name)
        study = None
        with contextlib.suppress(MissingStudyError):
            study = self.view.study(name)
        if study is None and job is None:
            raise MissingStudyError(f"there is no study '{name}': GET /v1/studies lists them")
        return FoundStudy(study, job)


@contextlib.contextmanager
def open_service(settings: ServiceSettings, start: Start = start_job) -> Iterator[Service]:
    """Opens the store and runs jobs during the block; leaves a running one resumable.

    Raises StudyError if a service over this store already runs here, or StoreError.
    """
    host = socket.gethostname()
    with contextlib.ExitStack() as undo:
        undo.enter_context(service_lock(settings.storage, host))
        writer = undo.enter_context(contextlib.closing(open_database(settings.storage)))
        reader = undo.enter_context(contextlib.closing(open_read_only(settings.storage)))
        view, jobs = Store(reader), Jobs(writer)
        runner = JobRunner(jobs, Jobs(reader), settings, host, start)
        service = Service(
            settings,
            view,
            jobs,
            runner,
            BestConfigs(view),
            ServiceMetrics(reader),
            Streams(settings.max_streams),
        )
        undo.callback(runner.close)
        undo.callback(service.closing.set)
        runner.start()
        yield service


def current(request: Request) -> Service:
    """The service behind a request."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service
