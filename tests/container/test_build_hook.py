"""The build hook: what it adds to a wheel, what it asks of the package index, and what it says."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from engine.native import build
from tests.requirements import require_cplusplus, require_module
from tuner.folders import SOURCE


@pytest.fixture(scope="module")
def module() -> ModuleType:
    """hatch_build.py."""
    require_module("hatchling", "hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", SOURCE / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


class App:
    """Stands in for hatchling's terminal."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def display_warning(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A source tree that holds the library's sources only."""
    folder = tmp_path / "engine" / "native"
    shutil.copytree(build.SOURCES, folder / "sources")
    shutil.copy(build.FOLDER / "build.py", folder)
    return tmp_path


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a compiler."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("EXPERTUNE_NATIVE", raising=False)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "ziglang" else found(name)
    )


def made(module: ModuleType, root: Path, app: App) -> Any:
    return module.NativeLibraryHook(str(root), {}, None, None, "", "wheel", app)


def initialize(module: ModuleType, root: Path) -> tuple[dict[str, Any], list[str]]:
    """What the hook changes, and its warnings."""
    app, data = App(), {"artifacts": [], "pure_python": True}
    made(module, root, app).initialize("standard", data)
    return data, app.warnings


def test_a_wheel_with_the_library_is_of_this_platform(module: ModuleType, root: Path):
    require_cplusplus()
    data, warnings = initialize(module, root)
    assert warnings == []
    assert data["artifacts"] == ["engine/native/libexpertune.so"]
    assert (root / data["artifacts"][0]).is_file()
    assert data["pure_python"] is False
    assert data["tag"].startswith("py3-none-linux_")


@pytest.mark.usefixtures("bare")
def test_without_a_compiler_the_wheel_is_pure_and_one_line_says_why(module: ModuleType, root: Path):
    data, (warning,) = initialize(module, root)
    assert data == {"artifacts": [], "pure_python": True}
    assert "no C++ compiler was found" in warning
    assert "\n" not in warning


def test_nothing_is_built_where_it_is_off(
    module: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("EXPERTUNE_NATIVE", "off")
    assert initialize(module, root) == ({"artifacts": [], "pure_python": True}, [])
    assert made(module, root, App()).dependencies() == []


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("found", [True, False])
def test_a_compiler_is_asked_of_the_index_only_if_the_index_has_it(
    module: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch, found: bool
):
    builder = module.load_build(root)
    monkeypatch.setattr(builder, "can_fetch", lambda: found)
    monkeypatch.setattr(module, "load_build", lambda root: builder)
    asked = made(module, root, App()).dependencies()
    assert asked == ([module.COMPILER] if found else [])


def test_nothing_is_asked_of_the_index_where_a_compiler_is(module: ModuleType, root: Path):
    require_cplusplus()
    assert made(module, root, App()).dependencies() == []
