"""Tokens, keys and passwords stay where they were given: in no file, output or argument list."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.postgres import serving
from tests.tuner.conftest import Tune
from tuner.cli import dashboard
from tuner.deployment.formats.registry import FORMATS
from tuner.processes import start
from tuner.processes.secrets import without_password
from tuner.workers import local, ray_cluster

PASSWORD = "planted-pass%2Fword"
PLANTED = {
    "HF_TOKEN": "hf_planted0123456789012345678901234",
    "HUGGING_FACE_HUB_TOKEN": "hf_planted-older-name",
    "EXPERTUNE_API_KEY": "planted-api-key-0123456789",
    "AWS_SECRET_ACCESS_KEY": "planted-cloud-key-0123456789",
    "PGPASSWORD": "planted-database-key",
}
FILE = "expertune-small.yaml"


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of every command that is started."""
    words: list[str] = []
    begin = subprocess.Popen.__init__

    def record(self: Any, command: Any, *others: Any, **options: Any) -> None:
        words.extend(map(str, [command] if isinstance(command, str) else command))
        begin(self, command, *others, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", record)
    return words


def written(folder: Path, but: str) -> bytes:
    """All files below a folder, but the one that the secret was given in."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != but)
    return b"\n".join(path.read_bytes() for path in files)


def check_absent(secrets: list[str], *texts: str | bytes) -> None:
    for secret in secrets:
        for text in texts:
            data = text.encode() if isinstance(text, str) else text
            assert secret.encode() not in data, secret


@pytest.mark.usefixtures("processes")
def test_a_round_of_study_export_and_deploy_keeps_secrets(
    tune: Tune, folder: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("EXPERTUNE_LOG", "debug")
    (folder / "key").write_text("planted-key-of-a-file\n")
    made = tune("service", "token", "add", "ci", "--json")
    token = str(made.document["token"])
    rounds = [
        ("--definition", "study.yaml", "--trials", "4", "--json"),
        ("studies", "--json"), ("show", "small", "--json"), ("show", "small"),
        *(("export", "small", "--format", name, "-o", f"{name}.out") for name in FORMATS),
        ("deploy", FILE, "--port", "0", "--json"),
        ("deploy", FILE, "--port", "0", "--api-key-file", "key"),
        ("deploy", "absent.yaml", "--json"),
        ("verify", FILE), ("doctor", "--store", "--json"), ("service", "token", "list"),
    ]  # fmt: skip
    said = [tune(*words) for words in rounds]
    assert [done.code for done in said[:2]] == [0, 0]
    secrets = [*PLANTED.values(), "planted-key-of-a-file", token.split("_", 2)[2]]
    check_absent(secrets, *(done.out + done.err for done in said))
    check_absent(secrets, written(folder, but="key"), "\n".join(arguments))
    assert any("fake_engine" in word for word in arguments)


def test_a_password_is_not_in_the_list_of_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[tuple[tuple[str, ...], dict[str, str]]] = []

    def note(*words: str, environment: Any = None, **_: Any) -> Any:
        started.append((words, dict(environment or {})))
        raise KeyboardInterrupt

    url = f"postgresql://me:{PASSWORD}@host/name"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    for module in (local, dashboard):
        monkeypatch.setattr(module, "start_module", note)
    monkeypatch.setattr(dashboard, "open_read_only", lambda _: Opened())
    with pytest.raises(KeyboardInterrupt), local.joined_workers("s", url, ["cpu"], False):
        pass
    with pytest.raises(KeyboardInterrupt):
        dashboard.dashboard(url, "127.0.0.1", 8599)
    assert len(started) == 2
    for words, environment in started:
        assert "planted" not in " ".join(words)
        assert "postgresql://me@host/name" in words
        assert environment == {"PGPASSWORD": "planted-pass/word"}


class Opened:
    """A store that is not there."""

    def close(self) -> None:
        """Nothing."""


def test_workers_of_a_cluster_get_it_beside_their_arguments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    orders: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def driver(order: dict[str, Any]) -> Iterator[Any]:
        orders.append(order)
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(ray_cluster, "_driver", driver)
    url = f"postgresql://me:{PASSWORD}@host/name"
    placed = ray_cluster.placed_workers("s", url, "auto", ("cpu", "cpu"), False, print)
    with pytest.raises(KeyboardInterrupt), placed:
        pass
    assert "planted" not in " ".join(orders[0]["arguments"])
    assert orders[0]["environment"] == {"PGPASSWORD": "planted-pass/word"}


@pytest.mark.parametrize(
    ("url", "shown", "password"),
    [
        ("postgresql://me:a%2Fb@h:1/n", "postgresql://me@h:1/n", "a/b"),
        ("postgresql://me@h/n?password=a%2Fb", "postgresql://me@h/n", "a/b"),
        ("postgresql://h/n?password=a&sslmode=require", "postgresql://h/n?sslmode=require", "a"),
        ("postgresql://me@h/n", "postgresql://me@h/n", None),
        ("sqlite:///a:b@c.db", "sqlite:///a:b@c.db", None),
        ("no url", "no url", None),
    ],
)
def test_a_url_loses_its_password(url: str, shown: str, password: str | None) -> None:
    assert without_password(url) == (shown, {} if password is None else {"PGPASSWORD": password})


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:planted@127.0.0.1:1/n",
        "postgresql://me:plan%2Fted-planted@127.0.0.1:1/n",
        "postgresql://me@127.0.0.1:1/n?password=planted",
        "postgresql://127.0.0.1:1/n?password=planted&connect_timeout=1",
        "postgres://me:planted@127.0.0.1:1/n",
        "postgres://me:a@planted@b@127.0.0.1/n",
        "postgresql://me:a@planted@b@127.0.0.1/n",
        "mysql://me:planted@127.0.0.1/n",
        "postgresql+psycopg2://me:planted@127.0.0.1/n",
        "postgresql://me:planted@127.0.0.1:port/n",
        "postgresql://me:planted@127.0.0.1:1/n?nonsense=planted2",
        "://me:planted@h",
    ],
)
def test_errors_of_a_storage_do_not_repeat_its_password(tune: Tune, url: str) -> None:
    for words in (
        ("studies", "--storage", url, "--json"),
        ("doctor", "--store", "--storage", url),
        ("--definition", "study.yaml", "--storage", url, "--json"),
        ("dashboard", "--storage", url),
    ):
        done = tune(*words)
        assert done.code != 0
        check_absent(
            ["planted"], done.out.replace("planted2", ""), done.err.replace("planted2", "")
        )


@pytest.mark.usefixtures("processes")
def test_a_study_in_postgresql_keeps_its_password(
    tune: Tune, folder: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as url:
        own = url.replace("@", f":{PASSWORD}@")
        monkeypatch.setenv("EXPERTUNE_LOG", "debug")
        words = ("--definition", "study.yaml", "--trials", "4", "--workers", "2", "--json")
        said = [
            tune(*words, "--storage", own),
            tune("export", "small", "--storage", own),
            tune("deploy", FILE, "--port", "0", "--storage", own, "--json"),
            tune("doctor", "--store", "--storage", own, "--json"),
        ]
    assert [done.code for done in said] == [0, 0, 0, 0]
    secrets = ["planted-pass", PASSWORD]
    check_absent(secrets, *(done.out + done.err for done in said), "\n".join(arguments))
    check_absent(secrets, written(folder, but=""))
    assert "--storage" in arguments  # of the second worker


def test_children_find_it_in_their_environment_and_no_key_of_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EXPERTUNE_API_KEY", "planted-api-key-0123456789")
    child = start.start_child(
        ["/usr/bin/env"], {"PGPASSWORD": "planted"}, stdout=subprocess.PIPE, text=True
    )
    out, _ = child.communicate(timeout=60)
    assert "PGPASSWORD=planted" in out.splitlines()
    assert "planted-api-key" not in out
