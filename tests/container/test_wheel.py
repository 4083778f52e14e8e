"""The wheel: what is in it, and that it runs where there is no source tree."""

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from email import message_from_string
from pathlib import Path
from typing import Any

import pytest

from engine import __version__
from tests.fakes.study import BUDGET_BYTES, ENGINE
from tests.requirements import require_cplusplus, require_module
from tuner.folders import SOURCE

MOST_BYTES = 40_000_000
PACKAGES = ("engine", "tuner", "dashboard")
STUDIES = ("policies", "workloads", "hardware", "demo")
LEFT_OUT = (SOURCE / "studies" / "demo" / "build", SOURCE / "studies" / "reference")
FOUND = """
import json, sys
from importlib.util import find_spec
import engine.facts.emulated_machine as machine, tuner.definition.policies as policies
import tuner.definition.workload as workload
from tuner.folders import SOURCE, studies_folder
modules = [module.__file__ for name, module in sys.modules.items()
           if name.partition(".")[0] in ("engine", "tuner") and module.__file__]
print(json.dumps({
    "files": [*modules, find_spec("dashboard.app").origin, str(SOURCE), str(studies_folder())],
    "machines": machine.machine_names(),
    "policies": policies.policy_names(),
    "prompts": {name: len(workload.load_workload(name).prompts)
                for name in workload.workload_names()},
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source tree, without the network."""
    require_module("hatchling", "hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory"]
    subprocess.run([*command, str(folder)], cwd=SOURCE, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    """Of the files in it, but for what describes it."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what an installation would."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def files_of(folder: Path) -> set[str]:
    """Those that belong into a wheel, relative to the source tree."""
    return {
        str(path.relative_to(SOURCE))
        for path in folder.rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and path.suffix != ".digest"
        and not any(path.is_relative_to(left) for left in LEFT_OUT)
    }


def run_installed(
    unpacked: Path, folder: Path, words: Sequence[str], engine: str | None = None
) -> Any:
    """The JSON that `python WORDS...` prints, in an empty folder, with nothing of ours to import
    but the wheel: -P and PYTHONSAFEPATH keep the working folder and scripts' folders out."""
    work = folder / "work"
    work.mkdir(exist_ok=True)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("EXPERTUNE_")},
        "PYTHONPATH": str(unpacked),
        "PYTHONSAFEPATH": "1",
        "XDG_DATA_HOME": str(folder / "data"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        **({"EXPERTUNE_ENGINE": engine} if engine else {}),
    }
    done = subprocess.run(
        [sys.executable, "-P", *words],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_holds_the_packages_and_the_data_of_commands_and_nothing_else(names: set[str]):
    wanted = set().union(*(files_of(SOURCE / package) for package in PACKAGES))
    for part in STUDIES:
        wanted |= {f"engine/{name}" for name in files_of(SOURCE / "studies" / part)}
    assert names == wanted
    assert {
        "engine/studies/demo/model/model.safetensors",
        "engine/studies/demo/tasks/demo_bpb.jsonl",
        "engine/studies/demo/heldout.txt",
        "engine/studies/demo/prompts.jsonl",
        "tuner/deployment/deployment.schema.json",
        "tuner/store/migrations/env.py",
        "tuner/store/migrations/script.py.mako",
        "dashboard/app.py",
        *(f"{package}/py.typed" for package in PACKAGES),
    } <= names
    assert any(name.startswith("tuner/store/migrations/versions/") for name in names)


def test_with_a_compiler_it_holds_the_native_library_of_this_platform(wheel: Path, names: set[str]):
    require_cplusplus()
    assert "engine/native/libexpertune.so" in names
    assert {"engine/native/sources/api.cpp", "engine/native/build.py"} <= names
    assert re.fullmatch(r"expertune-[0-9.]+-py3-none-linux_\w+\.whl", wheel.name)


def test_an_sdist_holds_what_builds_the_native_library(tmp_path: Path):
    require_module("hatchling", "hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory"]
    subprocess.run([*command, str(tmp_path)], cwd=SOURCE, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"hatch_build.py", "engine/native/build.py", "engine/native/sources/api.cpp"} <= names
    assert not {name for name in names if name.endswith(".so")}


def test_it_is_small(wheel: Path):
    assert wheel.stat().st_size < MOST_BYTES


def test_what_describes_it_agrees_with_the_program(unpacked: Path):
    (folder,) = unpacked.glob("*.dist-info")
    described = message_from_string((folder / "METADATA").read_text(encoding="utf-8"))
    assert (described["Name"], described["Version"]) == ("expertune", __version__)
    assert described["License-Expression"] == "Apache-2.0"
    assert (folder / "licenses" / "LICENSE").is_file()
    assert "tune = tuner.__main__:main" in (folder / "entry_points.txt").read_text()


def test_nothing_is_taken_from_a_source_tree(unpacked: Path, tmp_path: Path):
    found = run_installed(unpacked, tmp_path, ["-c", FOUND])
    assert len(found["files"]) > 10
    assert all(Path(file).is_relative_to(unpacked) for file in found["files"])
    assert "laptop_8gb" in found["machines"]
    assert "lru" in found["policies"]
    assert found["prompts"] == {"chat": 12, "code": 11, "demo": 72, "summary": 10}


def test_it_runs_a_study_of_the_demo_model(unpacked: Path, tmp_path: Path):
    words = ["-m", "tuner", "--model", "demo", "--vram", str(BUDGET_BYTES)]
    told = run_installed(unpacked, tmp_path, [*words, "--trials", "1", "--json"], ENGINE)
    assert told["study"]["name"] == "demo"
    assert len(told["trials"]) == 1
    assert (tmp_path / "work" / told["output"]).is_file()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_runs_a_study_with_the_true_engine(unpacked: Path, tmp_path: Path):
    words = ["-m", "tuner", "--model", "demo", "--vram", "60MB", "--trials", "1", "--limit", "4"]
    told = run_installed(unpacked, tmp_path, [*words, "--workload", "chat", "--json"])
    assert [trial["state"] for trial in told["trials"]] == ["COMPLETE"]
    run = ["-m", "tuner", "run", told["output"], "--prompt", "The module", "--max-tokens", "4"]
    assert len(run_installed(unpacked, tmp_path, [*run, "--json"])["tokens"]) == 4


@pytest.mark.slow
def test_it_runs_on_an_emulated_machine(unpacked: Path, tmp_path: Path):
    words = ["-m", "tuner", "bench", "--model", "demo", "--device", "emulated:laptop_8gb"]
    small = ["--vram", "60MB", "--policies", "lru", "--repeats", "1", "--sequences", "1", "--json"]
    (row,) = run_installed(unpacked, tmp_path, [*words, *small])["rows"]
    assert row["error"] is None
