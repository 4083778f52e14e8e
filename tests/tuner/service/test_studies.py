"""Starting, listing, stopping and resuming studies through requests; the processes are made up."""

from dataclasses import replace

import pytest
from fastapi.testclient import TestClient

from tests.tuner.service.made import REQUEST, MadeChild, client_of, until
from tuner.service.service import Service, open_service
from tuner.service.settings import ServiceSettings
from tuner.store.lock import study_lock


def job_state(client: TestClient, name: str = "first") -> str:
    return client.get(f"/v1/studies/{name}").json()["job"]["state"]


def start(client: TestClient, children: list[MadeChild], **changes: object) -> MadeChild:
    before = len(children)
    assert client.post("/v1/studies", json={**REQUEST, **changes}).status_code == 202
    until(lambda: len(children) > before)
    return children[-1]


def test_a_started_study_is_found_where_the_answer_says(client: TestClient):
    answer = client.post("/v1/studies", json=REQUEST)
    assert answer.status_code == 202
    found = client.get(answer.headers["Location"]).json()
    assert (found["name"], found["model"], found["trials"]) == ("first", "demo", 0)
    assert client.get("/v1/studies/first/trials").json() == {"trials": []}
    assert client.get("/v1/studies/first/front").json()["recommended"] is None


def test_the_same_request_without_a_name_is_the_same_study(client: TestClient, children):
    unnamed = {"model": "demo", "vram": "60MB"}
    first = client.post("/v1/studies", json=unnamed).json()["name"]
    assert first.startswith("demo-")
    until(lambda: children)
    children[0].end(0)
    until(lambda: job_state(client, first) == "DONE")
    more = client.post("/v1/studies", json={**unnamed, "trials": 40}).json()["name"]
    assert more == first
    other = client.post("/v1/studies", json={**unnamed, "vram": "70MB"}).json()["name"]
    assert other != first


def test_studies_run_one_at_a_time_in_order(client: TestClient, children: list[MadeChild]):
    running = start(client, children)
    client.post("/v1/studies", json={**REQUEST, "name": "second"})
    assert job_state(client, "second") == "QUEUED"
    running.end(0)
    until(lambda: job_state(client, "second") == "RUNNING")
    assert job_state(client) == "DONE"
    assert [s["name"] for s in client.get("/v1/studies").json()["studies"]] == ["first", "second"]


def test_a_study_that_waits_or_runs_cannot_be_asked_for_again(client: TestClient, children):
    start(client, children)
    again = client.post("/v1/studies", json=REQUEST)
    assert again.status_code == 409
    assert "waits or runs already" in again.json()["error"]["message"]


def test_a_study_that_runs_elsewhere_is_refused_at_once(
    client: TestClient, settings: ServiceSettings, children
):
    with study_lock(settings.storage, "first"):  # as `tune --study first` holds it
        refused = client.post("/v1/studies", json=REQUEST)
    assert refused.status_code == 409
    assert "already running (process" in refused.json()["error"]["message"]
    assert not children
    start(client, children)


def test_a_failed_study_says_why_and_may_be_asked_for_again(client: TestClient, children):
    start(client, children).end(3)
    until(lambda: job_state(client) == "FAILED")
    assert client.get("/v1/studies/first").json()["job"]["error"] == "it failed as it was told"
    start(client, children)


def test_a_study_that_cannot_be_started_fails_with_its_reason(settings: ServiceSettings):
    def refuse(*_: object) -> MadeChild:
        raise FileNotFoundError("there is no program")

    with open_service(settings, refuse) as service, client_of(service) as client:
        client.post("/v1/studies", json=REQUEST)
        until(lambda: job_state(client) == "FAILED")
        assert client.get("/v1/studies/first").json()["job"]["error"] == "there is no program"


def test_stopping_interrupts_a_running_study(client: TestClient, children: list[MadeChild]):
    child = start(client, children)
    assert client.delete("/v1/studies/first").json()["job"]["state"] in ("STOPPING", "STOPPED")
    until(lambda: job_state(client) == "STOPPED")
    assert (child.interrupted, child.killed, child.closed) == (True, False, True)
    assert client.delete("/v1/studies/first").status_code == 202


def test_a_study_that_does_not_end_when_asked_is_killed(settings: ServiceSettings):
    child = MadeChild(stubborn=True)
    quick = replace(settings, grace_s=0.1)
    with open_service(quick, lambda *_: child) as service, client_of(service) as client:
        client.post("/v1/studies", json=REQUEST)
        until(lambda: job_state(client) == "RUNNING")
        client.delete("/v1/studies/first")
        until(lambda: job_state(client) == "STOPPED")
    assert child.killed


def test_a_waiting_study_is_stopped_before_it_starts(client: TestClient, children: list[MadeChild]):
    running = start(client, children)
    client.post("/v1/studies", json={**REQUEST, "name": "second"})
    assert client.delete("/v1/studies/second").json()["job"]["state"] == "STOPPED"
    running.end(0)
    until(lambda: job_state(client) == "DONE")
    start(client, children, name="third")
    assert len(children) == 2


def test_a_service_that_ends_leaves_its_study_to_the_next_one(settings: ServiceSettings):
    first, second = MadeChild(), MadeChild()
    with open_service(settings, lambda *_: first) as service, client_of(service) as client:
        client.post("/v1/studies", json=REQUEST)
        until(lambda: job_state(client) == "RUNNING")
    assert first.interrupted
    with open_service(settings, lambda *_: second) as service, client_of(service) as client:
        until(lambda: job_state(client) == "RUNNING")
        second.end(0)
        until(lambda: job_state(client) == "DONE")


def test_a_job_of_a_dead_service_waits_again_and_one_to_be_stopped_ends(
    settings: ServiceSettings,
):
    with open_service(settings, lambda *_: MadeChild()) as service:
        host = service.runner.host
        service.runner.close()
        for name in ("running", "stopping"):
            service.jobs.add(name, {**REQUEST, "name": name}, 9)
            service.jobs.claim(host)
        service.jobs.request_stop("stopping")
        service.jobs.recover("another-machine")
        assert service.jobs.latest("running")["running"].state == "RUNNING"
        service.jobs.recover(host)
        assert service.jobs.latest("running")["running"].state == "QUEUED"
        assert service.jobs.latest("stopping")["stopping"].state == "STOPPED"


def test_a_second_service_over_the_same_store_is_refused(settings: ServiceSettings, service):
    with (
        pytest.raises(Exception, match="already runs on"),
        open_service(settings, lambda *_: MadeChild()),
    ):
        pass


def test_a_full_queue_takes_no_more(settings: ServiceSettings, children: list[MadeChild]):
    small = replace(settings, max_waiting=1)
    with open_service(small, lambda *_: MadeChild()) as service, client_of(service) as client:
        client.post("/v1/studies", json=REQUEST)
        until(lambda: job_state(client) == "RUNNING")
        assert client.post("/v1/studies", json={**REQUEST, "name": "b"}).status_code == 202
        full = client.post("/v1/studies", json={**REQUEST, "name": "c"})
    assert full.status_code == 429
    assert int(full.headers["Retry-After"]) > 0


def test_an_unknown_study_is_a_sentence(client: TestClient):
    for method, path in [
        ("GET", ""), ("GET", "/trials"), ("GET", "/front"), ("GET", "/events"), ("DELETE", ""),
    ]:  # fmt: skip
        answer = client.request(method, f"/v1/studies/absent{path}")
        assert answer.status_code == 404
        assert "there is no study 'absent'" in answer.json()["error"]["message"]


def test_a_name_that_asked_something_else_is_refused(served: Service):
    with client_of(served) as client:
        answer = client.post("/v1/studies", json={**REQUEST, "name": "small"})
    assert answer.status_code == 409
    assert "asked something else" in answer.json()["error"]["message"]


def test_a_finished_study_of_the_command_is_shown_as_the_command_shows_it(served: Service, tune):
    shown = tune("show", "small", "--json").document
    with client_of(served) as client:
        trials = client.get("/v1/studies/small/trials").json()["trials"]
        front = client.get("/v1/studies/small/front").json()
        document = client.get("/v1/studies/small").json()
    assert [t["metrics"] for t in trials] == [t["metrics"] for t in shown["trials"]]
    assert front["recommended"] == shown["recommended"]
    assert [t["number"] for t in front["front"]] == [t["number"] for t in shown["front"]]
    assert (document["state"], document["job"]) == ("FINISHED", None)
