"""The config that a deployment fetches: which one, as which bytes, and how cheaply again."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from engine.config.settings import EngineConfig
from engine.contract.report import Metric
from tests.fakes.study import BUDGET_BYTES
from tests.tuner.conftest import Tune
from tests.tuner.service.made import client_of
from tuner.deployment.document import parse_deployment
from tuner.pareto.front import build_front
from tuner.service.best import Candidate, Choice, ConfigRequest, choose
from tuner.service.service import Service
from tuner.store.repository import Store
from tuner.store.snapshots import StudySnapshot, TrialSnapshot
from tuner.store.tables import now

BEST = "/v1/configs/best"


@pytest.fixture
def client(served: Service) -> Iterator[TestClient]:
    with client_of(served) as found:
        yield found


def trial(number: int, tps: float, tpot_ms: float, quality: float | None, **settings: object):
    """A measured trial; number also stands for its configuration."""
    scores = {"output_tps": tps, "tpot_ms": tpot_ms}
    metrics = {name: Metric(value, value, value, 3, "") for name, value in scores.items()}
    if quality is not None:
        scores["quality"] = quality
    config = EngineConfig().overlay({"budget.vram_bytes": 1000, **settings}).to_dict()
    return TrialSnapshot(
        number, number, "COMPLETE", None, None, {}, scores, {}, {}, number, config, metrics,
        None, None, now(), now(),
    )  # fmt: skip


def candidate(name: str, *trials: TrialSnapshot, objectives=("output_tps", "tpot_ms", "quality")):
    study = StudySnapshot(
        1, name, "FINISHED", "m", 1, "f", 1, {}, {}, {}, "d", {}, "h", len(trials), {}, None,
        now(), now(),
    )  # fmt: skip
    return Candidate(study, build_front(trials, objectives))


def picked(candidates: list[Candidate], goal="knee", device=None, vram_bytes=None) -> int | None:
    choice: Choice | None = choose(candidates, ConfigRequest("m", device, vram_bytes, goal))
    return None if choice is None else choice.trial.number


FAST, QUICK, GOOD = trial(1, 90, 20, 0.8), trial(2, 50, 5, 0.95), trial(3, 10, 30, 1.0)


@pytest.mark.parametrize(
    ("goal", "number"), [("throughput", 1), ("latency", 2), ("quality", 3), ("knee", 2)]
)
def test_the_goal_decides_over_the_fronts_of_all_studies(goal: str, number: int):
    assert picked([candidate("a", FAST, GOOD), candidate("b", QUICK)], goal) == number


def test_only_budgets_that_fit_are_taken():
    small = trial(4, 1, 90, 0.91, **{"budget.vram_bytes": 500})
    studies = [candidate("a", QUICK), candidate("b", small)]
    assert [picked(studies, "throughput", vram_bytes=n) for n in (1000, 999, 499)] == [2, 4, None]


def test_only_the_wanted_device_is_taken():
    first = trial(5, 99, 1, 0.95, **{"device.name": "cuda:0"})
    studies = [
        candidate("a", first),
        candidate("b", trial(6, 1, 9, 0.95, **{"device.name": "cpu"})),
    ]
    found = {
        d: picked(studies, device=d) for d in ("cuda:0", "cuda", "cpu", "cuda:1", "auto", None)
    }
    assert found == {"cuda:0": 5, "cuda": 5, "cpu": 6, "cuda:1": None, "auto": 5, None: 5}


def test_where_one_study_judged_quality_those_that_did_not_do_not_count():
    blind = candidate("blind", trial(7, 500, 1, None), objectives=("output_tps",))
    assert picked([blind], "throughput") == 7
    assert picked([blind], "latency") == 7
    assert picked([blind], "quality") is None
    assert picked([blind, candidate("a", QUICK)], "throughput") == 2


def test_no_study_has_no_answer():
    assert picked([]) is None


@pytest.mark.parametrize("goal", ["knee", "throughput", "latency", "quality"])
def test_of_one_study_it_is_what_export_picks(client: TestClient, tune: Tune, goal: str):
    answer = client.get(BEST, params={"model": "some-moe", "goal": goal})
    assert answer.headers["Content-Type"] == "text/yaml; charset=utf-8"
    found = parse_deployment(answer.text)
    exported = parse_deployment(tune("export", "small", "--pick", goal).out)
    assert found.provenance.trial == exported.provenance.trial
    assert found.engine == exported.engine
    assert found.measured == exported.measured


def test_an_unchanged_config_costs_no_bytes(client: TestClient):
    first = client.get(BEST, params={"model": "some-moe"})
    etag = first.headers["ETag"]
    assert etag.startswith('"')
    for known in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        again = client.get(BEST, params={"model": "some-moe"}, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", etag)
    other = client.get(BEST, params={"model": "some-moe"}, headers={"If-None-Match": '"other"'})
    assert (other.status_code, other.content) == (200, first.content)


def test_two_services_give_the_same_bytes(client: TestClient, served: Service):
    first = client.get(BEST, params={"model": "some-moe"}).content
    served.best._known.clear()
    assert client.get(BEST, params={"model": "some-moe"}).content == first


def test_a_poll_reads_no_trials_until_something_changed(
    client: TestClient, served: Service, monkeypatch: pytest.MonkeyPatch
):
    reads: list[str] = []
    plain = Store.trials

    def counted(store: Store, study: StudySnapshot) -> tuple[TrialSnapshot, ...]:
        reads.append(study.name)
        return plain(store, study)

    monkeypatch.setattr(Store, "trials", counted)
    for _ in range(3):
        client.get(BEST, params={"model": "some-moe"})
    assert reads == ["small"]
    writer = Store(served.jobs.database)
    writer.set_study_state(writer.study("small").id, "FINISHED")
    client.get(BEST, params={"model": "some-moe"})
    assert reads == ["small", "small"]


def test_only_so_many_answers_are_kept(served: Service):
    served.best.keep = 2
    for vram_bytes in range(BUDGET_BYTES, BUDGET_BYTES + 5):
        assert served.best.find(ConfigRequest("some-moe", None, vram_bytes, "knee")) is not None
    assert len(served.best._known) == 2


@pytest.mark.parametrize(
    "query",
    [{"model": "demo"}, {"model": "some-moe", "vram": "1MB"}, {"model": "a/b", "device": "cuda"}],
)
def test_where_nothing_fits_a_sentence_says_so(client: TestClient, query: dict[str, str]):
    answer = client.get(BEST, params=query)
    assert answer.status_code == 404
    assert f"no study holds a config of '{query['model']}'" in answer.json()["error"]["message"]
