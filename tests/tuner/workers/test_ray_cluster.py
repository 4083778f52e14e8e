"""Workers on a Ray cluster: two nodes in one machine, PostgreSQL between them, a node that dies."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.postgres import serving
from tests.requirements import require_extra
from tests.tuner.conftest import Tune
from tuner.workers.ray_driver import Place, places_of

SOURCE = Path(__file__).resolve().parents[3]
# In a process of its own: Ray warns, forks and keeps global state. Not at 127.0.0.1, for which Ray
# puts the address of the network card.
CLUSTER = """
import sys, ray
from ray.cluster_utils import Cluster
common = {"num_cpus": 1, "node_ip_address": "127.0.0.2", "include_dashboard": False,
          "object_store_memory": 80_000_000}
cluster = Cluster(initialize_head=True, head_node_args=common)
others = [cluster.add_node(**common) for _ in range(int(sys.argv[1]))]
cluster.wait_for_nodes()
print(cluster.address, flush=True)
for line in sys.stdin:
    if line.strip() == "kill":
        cluster.remove_node(others.pop(), allow_graceful=False)
        print("killed", flush=True)
cluster.shutdown()
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SOURCE), "RAY_USAGE_STATS_ENABLED": "0"}


def node(name: str, cards: int = 0, alive: bool = True) -> dict[str, Any]:
    return {
        "NodeID": name,
        "NodeManagerAddress": f"10.0.0.{name}",
        "Alive": alive,
        "Resources": {"CPU": 4.0, **({"GPU": float(cards)} if cards else {})},
    }


def test_every_accelerator_but_the_parents_gets_a_worker():
    nodes = [node("1", 2), node("2", 1), node("3", 1, alive=False), node("4")]
    assert places_of(nodes, "1", "cuda:1", "auto") == [
        Place("1", "10.0.0.1", "cuda:0"),
        Place("2", "10.0.0.2", "cuda:0"),
        Place("4", "10.0.0.4", "auto"),
    ]


def test_without_accelerators_every_other_node_gets_a_worker():
    nodes = [node("1"), node("2", 1)]
    assert places_of(nodes, "1", "cpu", "cpu") == [Place("2", "10.0.0.2", "cpu")]
    assert places_of([node("1"), node("2")], "1", "cpu", "auto") == [Place("2", "10.0.0.2", "auto")]


@dataclass
class RayCluster:
    process: subprocess.Popen[str]
    address: str

    def kill_a_node(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("kill\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "killed\n"


@pytest.fixture
def cluster(folder: Path) -> Iterator[RayCluster]:
    """A head and one more node, both with the environment of the test."""
    require_extra("ray")
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER, "1"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=environment(),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, "the cluster did not start"
        yield RayCluster(process, address)
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin, process.stdout:
            pass
        process.wait(timeout=60)


@pytest.fixture
def storage(cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A PostgreSQL database that both nodes reach; trials take a while."""
    monkeypatch.setenv("EXPERTUNE_FAKE", json.dumps({"slow_s": 0.3}))
    with serving() as url:
        yield url


@contextlib.contextmanager
def running_study(tune: Tune, cluster: RayCluster, url: str) -> Iterator[subprocess.Popen[bytes]]:
    """Its parent, once both nodes run trials."""
    arguments = ["--definition", "study.yaml", "--trials", "14", "--sampler", "random"]
    arguments += ["--storage", url, "--ray", cluster.address]
    parent = subprocess.Popen([sys.executable, "-m", "tuner", *arguments], env=environment())
    try:
        _wait_for_two_workers(tune, url)
        yield parent
    finally:
        parent.kill()
        parent.wait()


@pytest.mark.timeout(200)
def test_two_nodes_share_a_study_and_a_lost_one_costs_its_trial(
    tune: Tune, cluster: RayCluster, storage: str
):
    with running_study(tune, cluster, storage) as parent:
        cluster.kill_a_node()
        assert parent.wait(timeout=90) == 0
    shown = tune("show", "small", "--storage", storage, "--json").document
    states = Counter(trial["state"] for trial in shown["trials"])
    numbers = [trial["number"] for trial in shown["trials"]]
    assert len(set(numbers)) == len(numbers)
    assert states["RUNNING"] == 0
    assert states["INTERRUPTED"] <= 1
    assert 14 <= sum(states.values()) - states["INTERRUPTED"] <= 15
    for lost in (trial for trial in shown["trials"] if trial["state"] == "INTERRUPTED"):
        again = [t for t in shown["trials"] if t["origin"] == "retry"]
        assert [t["params"] for t in again] == [lost["params"]]


@pytest.mark.timeout(200)
def test_an_interrupted_parent_leaves_no_trial_running_anywhere(
    tune: Tune, cluster: RayCluster, storage: str
):
    with running_study(tune, cluster, storage) as parent:
        parent.send_signal(signal.SIGINT)
        assert parent.wait(timeout=60) == 130
    shown = tune("show", "small", "--storage", storage, "--json").document
    assert shown["study"]["state"] == "INTERRUPTED"
    assert "RUNNING" not in {trial["state"] for trial in shown["trials"]}


def _wait_for_two_workers(tune: Tune, url: str) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        shown = tune("show", "small", "--storage", url, "--json")
        if shown.code == 0 and len({t["worker"] for t in shown.document["trials"]}) == 2:
            return
        time.sleep(0.3)
    raise AssertionError(f"the other node ran no trial within 60 s: {shown}")


def test_a_cluster_that_does_not_answer_is_said_in_one_sentence(tune: Tune, folder: Path):
    require_extra("ray")
    arguments = ["--definition", "study.yaml", "--trials", "2", "--sampler", "random"]
    done = subprocess.run(
        [sys.executable, "-m", "tuner", *arguments, "--ray", "127.0.0.1:1"],
        capture_output=True, text=True, check=False, env=environment(),
    )  # fmt: skip
    assert done.returncode == 1
    assert "no Ray cluster answers there" in done.stderr
    assert "Traceback" not in done.stderr


def test_ray_and_workers_exclude_each_other(tune: Tune, folder: Path):
    done = tune("--definition", "study.yaml", "--ray", "auto", "--workers", "2")
    assert (done.code, "leave one out" in done.err) == (2, True)
