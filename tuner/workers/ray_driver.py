"""Places a study's workers on a Ray cluster, as ordered on stdin.

`python -m tuner.workers.ray_driver FD`

A separate process, since Ray prints, forks and catches signals. It writes one JSON message a line
to FD: {"failed": sentence} or {"placed": n}, then {"worker": id} for each that began and {"lost":
id, "why": sentence} for each that died, then ends with the last worker. Ray ends the workers when
it dies.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuner.processes.identity import id_of
from tuner.processes.start import start_module

GPU = "GPU"
LAST_LINES = 5
CONNECT_S = 5.0

Say = Callable[[Mapping[str, Any]], None]


class PlacingError(Exception):
    """No worker can be placed; the message is for users."""


@dataclass(frozen=True)
class PlacementOrder:
    """Which workers to place. arguments: of `tune`, without the device; environment: secrets, which
    no argument may hold; own_device: the parent's; local: the storage is a file that no other
    machine sees."""

    address: str
    device: str
    own_device: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    local: bool


@dataclass(frozen=True)
class Place:
    """Where one worker runs. node: Ray's id of it; host: its address, for users."""

    node: str
    host: str
    device: str


def places_of(
    nodes: Sequence[Mapping[str, Any]], own_node: str, own_device: str, device: str
) -> list[Place]:
    """One place for each accelerator of the cluster, or for each node if none is requested, except
    the parent's own.

    nodes: as ray.nodes() lists them. own_device: the parent's, on own_node.
    """
    found = []
    for node in nodes:
        if not node["Alive"]:
            continue
        cards = int(node["Resources"].get(GPU, 0))
        several = device in ("auto", "cuda") and cards
        devices = [f"cuda:{index}" for index in range(cards)] if several else [device]
        if node["NodeID"] == own_node:
            taken = own_device if ":" in own_device else devices[0]
            devices = [one for one in devices if one != taken]
        found += [Place(node["NodeID"], node["NodeManagerAddress"], one) for one in devices]
    return found


class WorkerActor:
    """Runs one `tune worker` on its node; the worker dies with this actor."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = start_module(
            "tuner",
            *arguments,
            environment=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )

    def worker(self) -> str:
        """The worker id that its trials carry."""
        return id_of(self._process.pid)

    def wait(self) -> tuple[int, str]:
        """Waits for its end; returns exit code and last lines."""
        text, _ = self._process.communicate()
        return self._process.returncode, "\n".join(text.strip().splitlines()[-LAST_LINES:])


def main() -> None:
    """Places the ordered workers and watches them."""
    order = PlacementOrder(**json.loads(sys.stdin.readline()))
    with os.fdopen(int(sys.argv[1]), "w", buffering=1, encoding="utf-8") as messages:
        lock = threading.Lock()

        def say(message: Mapping[str, Any]) -> None:
            with lock:
                messages.write(json.dumps(message) + "\n")

        try:
            actors = place_all(order)
        except PlacingError as error:
            say({"failed": str(error)})
            return
        say({"placed": len(actors)})
        watches = [
            threading.Thread(target=_watch, args=(actor, place, say)) for place, actor in actors
        ]
        for watch in watches:
            watch.start()
        for watch in watches:
            watch.join()


def place_all(order: PlacementOrder) -> list[tuple[Place, Any]]:
    """Creates an actor for each place. Raises PlacingError."""
    try:
        import ray
    except ImportError:
        raise PlacingError("--ray needs the extra: pip install 'expertune[ray]'") from None
    _connect(ray, order.address)
    own = ray.get_runtime_context().get_node_id()
    nodes = ray.nodes()
    places = places_of(nodes, own, order.own_device, order.device)
    here = next(node["NodeManagerAddress"] for node in nodes if node["NodeID"] == own)
    away = sorted({place.host for place in places} - {here})
    if order.local and away:
        raise PlacingError(
            f"--ray: workers on {', '.join(away)} cannot reach a database file of this machine: "
            "give a shared one, such as --storage postgresql://user@host/name"
        )
    return [(place, _place(ray, place, order)) for place in places]


def _place(ray: Any, place: Place, order: PlacementOrder) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    card = 1 if place.device.startswith("cuda") else 0
    # the worker gets its GPU by number, so Ray must not renumber the visible ones
    variables = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"} if card else {}
    actor = ray.remote(WorkerActor).options(
        num_cpus=0,
        num_gpus=card,
        max_restarts=0,
        max_concurrency=2,
        scheduling_strategy=NodeAffinitySchedulingStrategy(place.node, soft=False),
        runtime_env={"env_vars": variables},
    )
    return actor.remote([*order.arguments, "--device", place.device], order.environment)


def _watch(actor: Any, place: Place, say: Say) -> None:
    """Watches a worker until it ends; reports a failure."""
    import ray

    worker = ""
    try:
        worker = ray.get(actor.worker.remote())
        say({"worker": worker})
        code, text = ray.get(actor.wait.remote())
    except ray.exceptions.RayError as error:
        say({"lost": worker, "why": f"the worker on {place.host}: {_first_line(error)}"})
        return
    if code:
        say({"lost": worker, "why": f"the worker on {place.host} ended with {code}: {text}"})


def _connect(ray: Any, address: str) -> None:
    host = "" if address == "auto" else _reached_host(address)
    # Ray would choose another address of this machine, which a loopback cluster does not use
    pinned = {"_node_ip_address": host} if host.startswith("127.") else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **pinned)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise PlacingError(_no_cluster(address, error)) from None


def _reached_host(address: str) -> str:
    """The host of `host:port`, after checking that something listens: Ray would search for
    minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise PlacingError(_no_cluster(address, error)) from None
    return host


def _no_cluster(address: str, error: BaseException) -> str:
    return (
        f"--ray {address}: no Ray cluster answers there ({_first_line(error)}); start one with "
        "`ray start --head`, and `ray start --address=HOST:6379` on the other machines"
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


if __name__ == "__main__":
    main()
