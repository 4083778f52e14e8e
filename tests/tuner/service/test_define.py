"""From a request to a definition: which names become paths, and which are refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.tuner.service.made import REQUEST
from tuner.definition.duration import MOST_S, parse_duration_s
from tuner.definition.workload import load_prompts, workload_names
from tuner.errors import DefinitionError
from tuner.service.child import _for_child
from tuner.service.define import ForbiddenModelError, allowed_model, define_study, write_prompts
from tuner.service.requests import DURATION, STUDY_NAME, NewStudy
from tuner.service.settings import ServiceSettings

WRONG = [
    {"model": "../demo"}, {"model": "demo/.."}, {"model": "a/b/c"}, {"model": "~/m"},
    {"model": "./m"}, {"model": "/m\x00"}, {"model": "a/b\n"}, {"model": ""},
    {"name": ".."}, {"name": "."}, {"name": "a/b"}, {"name": "a b"}, {"name": "a\n"},
    {"name": "x" * 101}, {"name": "\u00e4"},
    {"vram": 0}, {"vram": "lots"}, {"vram": "8GB,9GB"}, {"vram": True}, {"vram": "9" * 19},
    {"device": "emulated:../x.yaml"}, {"device": "emulated:/x.yaml"}, {"device": "cpu\n"},
    {"tasks": ["../task.yaml"]}, {"tasks": ["task.yaml"]}, {"tasks": ["/etc/passwd"]},
    {"prompts": []}, {"prompts": "file.txt"}, {"prompts": ["x" * 20_001]}, {"prompts": ["\x00"]},
    {"prompts": ["\ud800"]},
    {"objectives": ["quality", "quality"]}, {"objectives": []}, {"objectives": ["speed"]},
    {"space": {"precision.options.trace": ["/etc/passwd"]}}, {"space": {"batch.count": [0]}},
    {"space": {"cache.expert_bytes": ["101%"]}}, {"space": {"precision.bits": [5]}},
    {"trials": 0}, {"trials": 10**6}, {"timeout_s": float("nan")}, {"timeout_s": float("inf")},
    {"timeout_s": -1}, {"timeout_s": 1e8}, {"timeout_s": "5x"}, {"timeout_s": "-5m"},
    {"timeout_s": "1:30"}, {"timeout_s": ""}, {"timeout_s": True},
    {"trust_remote_code": True}, {"workload": "/etc/passwd"}, {"output": "/etc/cron.d/x"},
    {"engine": {"device.name": "cpu"}}, {"storage": "sqlite:///x"},
]  # fmt: skip


@pytest.mark.parametrize("changes", WRONG, ids=repr)
def test_what_is_not_allowed_starts_nothing(
    client: TestClient, service, changes: dict[str, object]
):
    body = json.dumps({**REQUEST, **changes})
    answer = client.post("/v1/studies", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert next(iter(changes)) in answer.json()["error"]["message"]
    assert service.jobs.latest() == {}


@given(st.from_regex(STUDY_NAME, fullmatch=True))
def test_no_name_that_is_allowed_leaves_its_folder(name: str):
    NewStudy(model="demo", vram=1, name=name)
    assert (Path("/folder") / name).resolve().parent == Path("/folder")


@pytest.mark.parametrize(
    ("given", "seconds"), [("25m", 1500), ("1h30m", 5400), ("90s", 90), ("90", 90), (90, 90)]
)
def test_durations_are_read_as_everywhere(
    settings: ServiceSettings, given: str | float, seconds: float
):
    request = NewStudy(model="demo", vram="1GB", timeout_s=given)
    assert define_study(request, settings).timeout_s == seconds


@given(st.from_regex(DURATION, fullmatch=True))
def test_every_duration_that_is_allowed_is_one(text: str):
    assert 0 <= parse_duration_s(text) < MOST_S


def test_a_workload_is_named_in_place_of_prompts(settings: ServiceSettings):
    request = NewStudy(model="demo", vram="1GB", workload="chat")
    assert define_study(request, settings).load_workload().name == "chat"
    with pytest.raises(DefinitionError, match="leave one out"):
        define_study(request.model_copy(update={"prompts": ["one"]}), settings)


def test_the_workloads_of_a_request_are_those_that_are_installed():
    (names, _) = get_args(NewStudy.model_fields["workload"].annotation)
    assert get_args(names) == workload_names()


def test_sizes_are_read_as_everywhere(settings: ServiceSettings):
    request = NewStudy(model="demo", vram="1.5GiB", ram=7, disk="0.5 GB")
    budget = define_study(request, settings).budget
    assert (budget.vram_bytes, budget.ram_bytes, budget.disk_bytes) == (3 << 29, 7, 5 * 10**8)


def test_a_whole_number_may_be_written_with_a_point():
    body = {"model": "demo", "vram": 60e6, "trials": 3.0, "space": {"precision.bits": [4.0]}}
    request = NewStudy.model_validate(body)
    assert (request.vram, request.trials, request.space.bits) == (60_000_000, 3, [4])


def test_a_definition_never_trusts_remote_code(settings: ServiceSettings):
    definition = define_study(NewStudy(model="owner/name", vram="1GB"), settings)
    assert definition.trust_remote_code is False
    assert (definition.output, definition.workload, definition.engine) == ("", "", {})
    assert definition.study_name.startswith("name-")


def test_prompts_become_a_file_named_by_its_content(settings: ServiceSettings):
    texts = ["one line", "two\nlines", "\u2028 is a line to some", '{"prompt": 1}']
    request = NewStudy(model="demo", vram=1, prompts=texts)
    path = Path(define_study(request, settings).prompts)
    assert not path.exists()
    write_prompts(request, settings.folder)
    assert path.parent == settings.folder / "prompts"
    assert load_prompts(path) == (tuple(texts), ())


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """models/good is allowed; secret lies outside, and models/link leads there."""
    (tmp_path / "models" / "good").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (tmp_path / "models" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "models" / "file").write_text("")
    return tmp_path / "models"


def test_a_folder_below_an_allowed_one_may_be_named(models: Path):
    assert allowed_model(str(models / "good"), [models]) == str(models / "good")
    assert allowed_model(f"{models}/./good/../good", [models]) == str(models / "good")
    assert allowed_model("demo", []) == "demo"
    assert allowed_model("owner/name", []) == "owner/name"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/link",
        "/file",
        "/absent",
        "/../secret",
        "/good/../../secret",
        "/link/.",
        "/link/../good",
    ],
)
def test_no_other_folder_may_be_named_and_nothing_is_told_of_it(models: Path, name: str):
    with pytest.raises(ForbiddenModelError, match="is no folder below one that this service"):
        allowed_model(f"{models}{name}", [models])
    with pytest.raises(ForbiddenModelError):
        allowed_model(str(models / "good"), [])


def test_a_forbidden_folder_is_403(client: TestClient):
    answer = client.post("/v1/studies", json={**REQUEST, "model": "/etc"})
    assert answer.status_code == 403
    assert "--models-folder" in answer.json()["error"]["message"]


def test_an_allowed_folder_is_taken(models: Path, settings: ServiceSettings):
    allowed = replace(settings, models_folders=(models,))
    definition = define_study(NewStudy(model=str(models / "good"), vram=1), allowed)
    assert definition.model == str(models / "good")
    assert definition.study_name.startswith("good-")


def test_a_password_of_the_store_is_not_in_the_list_of_processes():
    url, secrets = _for_child("postgresql://me:s3cr3t%2F@host/name")
    assert (url, secrets) == ("postgresql://me@host/name", {"PGPASSWORD": "s3cr3t/"})


def test_a_job_in_its_own_folder_writes_to_the_service_s_file() -> None:
    # a relative URL would mean another file in the folder of the job
    assert _for_child("sqlite:///a%2F.db") == (f"sqlite:///{Path.cwd() / 'a%2F.db'}", {})


def test_a_request_is_strict_about_types():
    with pytest.raises(ValidationError):
        NewStudy.model_validate({"model": "demo", "vram": 1, "trials": "3"})


def test_a_value_twice_is_a_sentence_not_a_failure(client: TestClient):
    # 7 and 7.0 are one number in JSON
    space = {"prefetch.depth": [1, 7.0, 7]}
    answer = client.post("/v1/studies", json={**REQUEST, "space": space})
    assert answer.status_code == 422
    assert "'prefetch.depth' has a value twice" in answer.json()["error"]["message"]
