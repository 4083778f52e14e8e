"""The check program (sources/check.cpp): every instruction set against the scalar reference, and
the pool of threads, plainly and under the compiler's sanitizers."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from engine.native.build import build, find_compiler
from tests.requirements import require_cplusplus, require_module, require_program

EVERY = {"": 1, "address": 5, "undefined": 5, "thread": 10}  # sanitizer -> every how many-th case
ENVIRONMENT = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
AARCH64 = "aarch64-linux-gnu"


def run_check(program: Path, *prefix: str, every: int = 1) -> str:
    """What it prints; fails the test with all of it if it finds something."""
    command = [*prefix, str(program), str(every)]
    done = _run(command)
    if "unexpected memory mapping" in done.stderr:
        # ThreadSanitizer minds kernels that lay out addresses at random with many bits
        done = _run(["setarch", "-R", *command])
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=250
    )


@pytest.mark.parametrize("sanitize", EVERY, ids=lambda name: name or "plain")
def test_every_instruction_set_agrees_with_the_reference(sanitize: str, tmp_path: Path):
    compiler = require_cplusplus(sanitize)
    program = build(tmp_path / "check", compiler=compiler, sanitize=sanitize, check=True)
    said = run_check(program, every=EVERY[sanitize])
    assert said.startswith("equal to the reference in ")
    assert said.split()[-1] == "reference"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_neon_agrees_with_the_reference(tmp_path: Path):
    require_module("ziglang", "ziglang")
    qemu = require_program("qemu-aarch64-static")
    program = build(tmp_path / "check", compiler=ziglang(), check=True, target=AARCH64)
    assert run_check(program, qemu, "-L", f"/usr/{AARCH64}", every=5).split()[-2:] == [
        "neon",
        "reference",
    ]


def ziglang() -> list[str]:
    """Its compiler, although another one may be here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        patch.delenv("CXX", raising=False)
        found = find_compiler()
    assert found is not None
    return found


@pytest.mark.slow
def test_the_check_sees_a_wrong_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # that it can fail: one sign of the reference's table is turned
    compiler = require_cplusplus()
    if platform.machine() != "x86_64":
        pytest.skip("needs an instruction set beside the reference")
    import engine.native.build as module

    shutil.copytree(module.SOURCES, tmp_path / "sources")
    monkeypatch.setattr(module, "SOURCES", tmp_path / "sources")
    reference = tmp_path / "sources" / "reference.cpp"
    text = reference.read_text(encoding="utf-8")
    assert "code - 8" in text
    reference.write_text(text.replace("code - 8", "code - 7"), encoding="utf-8")
    program = build(tmp_path / "check", compiler=compiler, check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "differs from the reference" in done.stdout
    assert len(done.stdout.splitlines()) == 1
