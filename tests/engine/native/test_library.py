"""Loading the library: why there is none, and what is said then."""

import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.native import build, library
from engine.native.description import describe
from tests.requirements import require_cplusplus

RUN = """
import logging, sys
logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
from pathlib import Path
from engine.device.cpu import CpuDevice
from engine.evaluate.parity import check_parity
from engine.run.engine import Engine
engine = Engine(Path(sys.argv[1]), CpuDevice(), Path(sys.argv[2]))
print(check_parity(engine, 8).max_abs_diff)
engine.close()
"""


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What was loaded and said before is forgotten, here and afterwards."""
    monkeypatch.setattr(library, "_open", {})
    monkeypatch.delenv("EXPERTUNE_NATIVE", raising=False)
    monkeypatch.delenv(library.INSTRUCTION_SET, raising=False)
    library.load.cache_clear()
    library._say_once.cache_clear()
    library.chosen_set.cache_clear()
    yield
    library.load.cache_clear()
    library._say_once.cache_clear()
    library.chosen_set.cache_clear()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of these sources."""
    return build.build(
        tmp_path_factory.mktemp("built") / "libexpertune.so", compiler=require_cplusplus()
    )


@pytest.mark.usefixtures("fresh")
def test_a_missing_library_says_how_to_build_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "LIBRARY", tmp_path / "none.so")
    reason = library.load()
    assert isinstance(reason, str)
    assert "not built" in reason
    assert "python -m engine.native.build" in reason


@pytest.mark.usefixtures("fresh")
def test_a_broken_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(build, "LIBRARY", broken)
    assert "cannot be loaded" in str(library.load())
    assert str(broken) in str(library.load())


@pytest.mark.usefixtures("fresh")
def test_a_library_of_other_sources_is_not_used(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(build.SOURCES, tmp_path / "sources")
    (tmp_path / "sources" / "pool.h").write_text("// other\n", encoding="utf-8")
    monkeypatch.setattr(build, "LIBRARY", built)
    monkeypatch.setattr(build, "SOURCES", tmp_path / "sources")
    assert "of other sources" in str(library.load())


@pytest.mark.usefixtures("fresh")
def test_one_line_says_that_torch_multiplies_instead(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("EXPERTUNE_NATIVE", "off")
    with caplog.at_level(logging.WARNING):
        assert not library.is_available()
        assert not library.is_available()
    (line,) = caplog.messages
    assert "EXPERTUNE_NATIVE is off" in line


@pytest.mark.usefixtures("fresh")
def test_the_description_names_the_instruction_set_or_the_reason(
    built: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(build, "LIBRARY", built)
    found = describe()
    assert found.reason is None
    assert found.threads >= 1
    assert f"used, with {found.instruction_set} and {found.threads} threads" in str(found)
    monkeypatch.setenv(library.INSTRUCTION_SET, "reference")
    library.chosen_set.cache_clear()
    assert describe().instruction_set == "reference"
    monkeypatch.setenv(library.INSTRUCTION_SET, "mmx")
    library.load.cache_clear()
    assert "mmx does not run here: use one of" in str(describe())
    monkeypatch.delenv(library.INSTRUCTION_SET)
    monkeypatch.setenv("EXPERTUNE_NATIVE", "off")
    library.load.cache_clear()
    assert str(describe()).startswith("not used, torch multiplies instead (slower): ")


@pytest.mark.usefixtures("fresh")
def test_an_instruction_set_that_does_not_run_here_is_refused(
    built: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(build, "LIBRARY", built)
    opened = library.load()
    assert isinstance(opened, library.Library)
    assert opened.instruction_sets()[-1] == "reference"
    with pytest.raises(ValueError, match="mmx does not run here: use"):
        library.Threads(opened, 1, "mmx")


def test_a_run_without_the_library_is_right_and_says_so_once(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("EXPERTUNE_NATIVE", "off")
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tiny_folder), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-4
    assert done.stderr.count("torch multiplies instead") == 1
