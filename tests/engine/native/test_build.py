"""The build: which compiler, what is said without one, when it is built anew."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine.native import build as module
from tests.requirements import require_cplusplus


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a compiler."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a build puts the library instead of into the source tree."""
    target = tmp_path / "libexpertune.so"
    monkeypatch.setattr(module, "LIBRARY", target)
    return target


@pytest.mark.usefixtures("bare")
def test_without_a_compiler_the_error_says_what_to_install(tmp_path: Path):
    assert module.find_compiler() is None
    with pytest.raises(module.BuildError, match=r"apt install g\+\+.*ziglang"):
        module.build(tmp_path / "library.so")


@pytest.mark.usefixtures("bare")
def test_the_command_goes_on_without_a_compiler_and_says_so_in_one_line(
    library: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("EXPERTUNE_NATIVE", raising=False)
    monkeypatch.setattr(module, "_pip", lambda *words, patience_s: None)
    assert module.main(["--fetch"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "torch multiplies instead" in line
    assert not library.exists()


@pytest.mark.usefixtures("bare")
def test_no_network_means_no_compiler_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    failed = subprocess.CompletedProcess[bytes]([], 1)
    monkeypatch.setattr(module, "_pip", lambda *words, patience_s: failed)
    assert module.fetch_compiler(tmp_path) is None
    assert not module.can_fetch()


def test_a_named_compiler_is_taken_first_and_passed_over_if_it_does_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    compiler = require_cplusplus()
    own, broken = tmp_path / "own", tmp_path / "broken"
    own.write_text(f'#!/bin/sh\nexec {" ".join(compiler)} "$@"\n', encoding="utf-8")
    broken.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    own.chmod(0o755)
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", f"{own} -O0")
    assert module.find_compiler() == [str(own), "-O0"]
    monkeypatch.setenv("CXX", str(broken))
    assert module.find_compiler() == compiler


def test_what_fails_to_compile_is_an_error_with_the_compilers_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    compiler = require_cplusplus()
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "pool.cpp").write_text("#error no pool here\n", encoding="utf-8")
    monkeypatch.setattr(module, "SOURCES", tmp_path / "sources")
    with pytest.raises(module.BuildError, match="no pool here"):
        module.build(tmp_path / "library.so", compiler=compiler)
    assert not (tmp_path / "library.so").exists()


def test_it_is_built_once_and_again_when_a_source_changes(
    tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch
):
    built = []

    def pretend(output: Path, *, compiler: list[str] | None) -> None:
        assert output == library
        built.append(compiler)
        library.touch()
        library.with_suffix(".digest").write_text(module.digest(), encoding="utf-8")

    monkeypatch.setattr(module, "find_compiler", lambda: ["c++"])
    monkeypatch.setattr(module, "build", pretend)
    assert module.build_if_stale()
    assert not module.build_if_stale()
    assert module.build_if_stale(force=True)
    shutil.copytree(module.SOURCES, tmp_path / "sources")
    (tmp_path / "sources" / "pool.h").write_text("// other\n", encoding="utf-8")
    monkeypatch.setattr(module, "SOURCES", tmp_path / "sources")
    assert module.build_if_stale()
    assert built == [["c++"]] * 3


def test_it_needs_nothing_but_the_standard_library():
    path = str(module.FOLDER / "build.py")
    script = f"import sys, runpy; runpy.run_path({path!r}); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True
    )
    assert not {name for name in done.stdout.split() if name.startswith(("engine", "torch"))}
