"""Prometheus metrics: requests by route, jobs by state, trials by study; one registry per
service."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tuner.store.database import Database
from tuner.store.service import JOB_STATES, Jobs, trials_by_study

METHODS = ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH")


@dataclass
class ServiceMetrics:
    """The counters of this process, and metrics read from the store on request."""

    view: Database
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    requests: Counter = field(init=False)
    seconds: Histogram = field(init=False)

    def __post_init__(self) -> None:
        self.requests = Counter(
            "expertune_service_requests",
            "Requests by route, method and status.",
            ["route", "method", "code"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "expertune_service_request_seconds",
            "Seconds to the first byte of the answer.",
            ["route"],
            registry=self.registry,
        )
        self.registry.register(StoreCollector(self.view))

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)


@dataclass(frozen=True)
class StoreCollector(Collector):
    """Jobs and trials in the store, whichever process ran them."""

    view: Database

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """The metric names, so that registration needs no query."""
        yield GaugeMetricFamily("expertune_service_jobs", "Jobs by state.", labels=["state"])
        yield GaugeMetricFamily(
            "expertune_study_trials", "Trials by study and state.", labels=["study", "state"]
        )

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Queries the store now."""
        jobs, trials = self.describe()
        counts = Jobs(self.view).count_by_state()
        for state in JOB_STATES:
            jobs.add_metric([state], counts.get(state, 0))
        for (study, trial_state), count in trials_by_study(self.view).items():
            trials.add_metric([study, trial_state], count)
        yield jobs
        yield trials


@dataclass(frozen=True)
class Metered:
    """An ASGI layer that counts requests by their route template, never by their path."""

    app: ASGIApp
    metrics: ServiceMetrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on and records its response."""
        started_s = time.perf_counter()

        async def send_noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                method = scope["method"] if scope["method"] in METHODS else "other"
                self.metrics.requests.labels(route, method, str(message["status"])).inc()
                self.metrics.seconds.labels(route).observe(time.perf_counter() - started_s)
            await send(message)

        await self.app(scope, receive, send_noted)
