"""Where data go when a container's user has no home, or one that cannot be written."""

import logging
import os
import tempfile
from pathlib import Path

import pytest

from tuner.cli import home
from tuner.cli.home import give_home


@pytest.fixture
def spare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path / f"expertune-{os.getuid()}"


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """No passwd entry: `docker run -u 12345`, OpenShift's users."""

    def unknown(_: type) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(unknown))


@pytest.mark.usefixtures("nobody")
def test_without_a_home_a_folder_of_temporary_files_is_used_and_said(
    spare: Path, caplog: pytest.LogCaptureFixture
):
    environment: dict[str, str] = {}
    with caplog.at_level(logging.WARNING):
        give_home(environment)
    assert environment == {"HOME": str(spare), "USER": str(os.getuid())}
    assert "there is no home folder" in caplog.text
    assert "XDG_DATA_HOME" in caplog.text


@pytest.mark.usefixtures("spare")
def test_a_home_that_can_be_written_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    environment = {"HOME": str(tmp_path)}
    give_home(environment)
    assert environment == {"HOME": str(tmp_path)}
    assert not caplog.text


def test_a_read_only_home_keeps_its_models(
    spare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    models = tmp_path / "home" / ".cache" / "huggingface"
    models.mkdir(parents=True)
    monkeypatch.setattr(home.os, "access", lambda path, mode: "home" not in Path(path).parts)
    environment = {"HOME": str(tmp_path / "home")}
    with caplog.at_level(logging.WARNING):
        give_home(environment)
    assert environment["HF_HOME"] == str(models)
    assert environment["XDG_DATA_HOME"] == str(spare / ".local/share")
    assert environment["XDG_CACHE_HOME"] == str(spare / ".cache")
    assert caplog.text.count("cannot be written") == 2


@pytest.mark.usefixtures("spare", "nobody")
def test_named_folders_are_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(home.os, "access", lambda *_: False)
    named = {"HOME": "/", "XDG_DATA_HOME": "/data", "XDG_CACHE_HOME": "/cache"}
    environment = dict(named)
    give_home(environment)
    assert environment == named
