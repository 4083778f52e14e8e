"""Serves a deployment file: checks it, runs the canary, chooses a point, serves, keeps telemetry.

In: a deployment and a session whose worker can serve (engine.serve). Out: which point is served and
why, then windows of telemetry in the store until the server has drained.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from engine.config.settings import EngineConfig
from engine.errors import InfeasibleError
from engine.facts.cards import cuda_order
from engine.facts.model import ModelFacts
from engine.files import short_digest
from engine.memory.plan import context_bytes, resolve
from engine.types import FailureClass, format_bytes
from tuner.definition.text import read_text
from tuner.deployment.canary import Canary, Point, points_of, run_canary
from tuner.deployment.document import Deployment, MeasuredMetric
from tuner.deployment.drift import Reference, find_drift
from tuner.engine_client.process import Event
from tuner.engine_client.session import EngineSession
from tuner.errors import BusyMachineError, CanaryError, StoreError, UsageError, WorkerError
from tuner.processes.secrets import KEY_VARIABLE
from tuner.store.repository import Store

log = logging.getLogger(__name__)
_KEY = re.compile(r"[!-~]{16,512}")
Policy = Literal["warn", "strict", "walk"]
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#A-Z]+")  # browsers send it in small letters
Notify = Callable[[str], None]
# Failures of a config that is too large for the memory that is free now.
UNFIT: tuple[FailureClass, ...] = ("does_not_fit", "out_of_memory")


@dataclass(frozen=True)
class ServerOptions:
    """The user's server options: a subset of the fields of engine.serve's ServeOptions."""

    name: str
    host: str
    port: int
    queue: int
    drain_s: int
    telemetry_s: float
    cors_origins: tuple[str, ...] = ()
    key_digest: str = ""


def read_api_key(file: Path | None, environment: Mapping[str, str]) -> str:
    """The SHA-256 of the API key in a file, else in EXPERTUNE_API_KEY; "" if there is none. Only
    the digest goes on from here.

    Raises UsageError for a key that can be guessed, or that no header can carry.
    """
    source = KEY_VARIABLE if file is None else str(file)
    key = (
        environment.get(KEY_VARIABLE, "") if file is None else read_text(file, UsageError)
    ).strip()
    if not key and file is None:
        return ""
    if not _KEY.fullmatch(key):
        raise UsageError(
            f"{source}: an API key is 16 to 512 letters, digits and signs without spaces, such as "
            "`openssl rand -hex 32` prints"
        )
    return short_digest(key, 64)


def check_origins(origins: Sequence[str]) -> tuple[str, ...]:
    """The origins as browsers write them. Raises UsageError for what no browser would send."""
    for origin in origins:
        if origin not in ("*", "null") and not _ORIGIN.fullmatch(origin):
            raise UsageError(
                f"--cors-origin {origin} is no origin: give scheme, host and port of the page, "
                "without a path (https://example.org, http://localhost:3000), or '*' for all"
            )
    return tuple(origins)


def choose(
    session: EngineSession, deployment: Deployment, policy: Policy, notify: Notify
) -> Canary:
    """Checks budget and speed, and leaves the session configured with the point to serve.

    warn: the file's own config, whatever the canary finds; strict: only if it holds; walk: else the
    first neighbour that holds. Raises CanaryError if none may be served, BusyMachineError if other
    programs keep the canary from telling, InfeasibleError or WorkerError if the file's config
    cannot run here and there is no neighbour to fall back to.
    """
    workload, seed = deployment.workload.to_workload(), deployment.provenance.seed
    points = points_of(deployment) if policy == "walk" else points_of(deployment)[:1]
    facts = session.facts
    problems: list[str] = []
    for point in points:
        here = point.config.overlay({"device.name": session.opened_device})
        try:
            check_memory(here, facts, session.hardware, session.card)
            found = run_canary(session, point, workload, seed=seed, notify=notify)
        except (InfeasibleError, WorkerError) as error:
            if policy != "walk" or error.failure not in UNFIT:
                raise
            found = Canary(point, None, str(error))
        if found.holds:
            if found.verification is not None and found.verification.outcome == "faster":
                notify(found.verification.sentence)
            return found
        if found.busy and policy != "warn":
            raise BusyMachineError(
                f"{found.problem}: run again when nothing else runs here, or serve it all the same "
                "without --strict and --walk"
            )
        problems.append(f"trial {point.trial}: {found.problem}")
        notify(f"does not hold here: {problems[-1]}")
        if policy == "warn":
            if found.verification is None:  # a canary that took too long ended its process
                session.configure(point.config)
            return found
    what = "the config does" if len(points) == 1 else "neither the config nor a neighbour does"
    raise CanaryError(
        f"{what} not do here what the file says ({'; '.join(problems)}): tune again on this "
        "machine, or serve it all the same without --strict and --walk"
    )


def check_memory(
    config: EngineConfig,
    facts: ModelFacts,
    hardware: Mapping[str, Any],
    card: str | None = None,
) -> None:
    """Raises InfeasibleError if the config exceeds its own budget, or needs more than this
    machine's free memory beside what the open model takes by now: on the CPU its non-expert
    weights, on an accelerator the driver's context. hardware: {} if unknown, read after the model
    was opened; card: the UUID of the opened one, if known."""
    _, plan = resolve(config, facts)
    on_host = _is_host(config.device.name)
    needed = plan.total_bytes - (plan.non_expert_bytes if on_host else context_bytes(config))
    free = _free_bytes(config.device.name, hardware, card)
    if free is not None and needed > free:
        raise InfeasibleError(
            f"the config takes {format_bytes(needed)} beside what is loaded, {config.device.name} "
            f"has {format_bytes(free)} free: end what else runs there, or export a trial of a "
            "smaller budget",
            plan.total_bytes,
        )


def serve(
    session: EngineSession,
    deployment: Deployment,
    canary: Canary,
    options: ServerOptions,
    *,
    store: Store,
    on_ready: Callable[[str, int], None],
) -> dict[str, Any]:
    """Serves until the session is interrupted and has drained; returns the server's totals.

    on_ready: called with host and port once requests are accepted. Raises WorkerError if the server
    cannot listen, or dies.
    """
    name = f"{deployment.provenance.study}/{canary.point.trial}"
    reference = Reference(canary.routing, _recorded_hit_rate(canary.point))

    def on_event(event: Event) -> None:
        if event.get("event") == "ready":
            on_ready(str(event["host"]), int(event["port"]))
        elif event.get("event") == "telemetry":
            keep_window(store, name, event, reference)

    return session.serve(on_event, **asdict(options))


def keep_window(store: Store, deployment: str, event: Event, reference: Reference) -> None:
    """Stores a window with its drift, unless it is empty. A write failure is logged once, and
    serving goes on."""
    window = {key: value for key, value in event.items() if key not in ("schema", "id", "event")}
    if not (window["prompt_tokens"] or window["output_tokens"] or any(_ends(window))):
        return
    drift = find_drift(window, reference)
    try:
        store.add_telemetry(deployment, {**window, "drift": drift.to_json()})
    except StoreError as error:
        log.warning("telemetry is not kept: %s", error)


def _ends(window: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(window["sequences"][end] for end in ("finished", "failed", "cancelled"))


def _recorded_hit_rate(point: Point) -> float | None:
    found = point.measured.get("expert_hit_rate")
    return found.value if isinstance(found, MeasuredMetric) else None


def _free_bytes(device: str, hardware: Mapping[str, Any], card: str | None) -> int | None:
    """Free bytes of the memory that holds this device's slots; None if unknown."""
    if not hardware:
        return None
    if not device.startswith("cuda"):
        found = hardware["ram_available_bytes"] if _is_host(device) else None
    else:
        gpus = hardware["gpus"]
        uuids = [gpu["uuid"] for gpu in gpus]
        order = cuda_order([gpu["name"] for gpu in gpus], uuids, os.environ)
        number = int(device.partition(":")[2] or 0)
        index = order[number] if number < len(order) else None
        if f"GPU-{card}" in uuids:
            index = uuids.index(f"GPU-{card}")
        found = None if index is None else gpus[index]["free_bytes"]
    return None if found is None else int(found)


def _is_host(device: str) -> bool:
    return device == "cpu" or device.startswith("emulated")
