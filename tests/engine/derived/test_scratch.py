"""Folders of one process that do not outlive it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine.derived import scratch
from engine.derived.scratch import scratch_folder, sweep_scratch

HOLD = """
import sys, time
from pathlib import Path
from engine.derived.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "weights").write_bytes(bytes(1000))
    print(folder, flush=True)
    time.sleep(60)
"""


def held(cache: Path) -> list[Path]:
    return list((cache / "scratch").iterdir())


def test_it_is_gone_at_the_end_also_after_an_error(tmp_path: Path) -> None:
    def fail() -> None:
        with scratch_folder(tmp_path) as folder:
            (folder / "weights").write_bytes(b"x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert held(tmp_path) == []


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_uses_is_not(
    tmp_path: Path,
) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    folder = Path(child.stdout.readline().strip())
    sweep_scratch(tmp_path)
    assert (folder / "weights").is_file()
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert folder.is_dir()
    with scratch_folder(tmp_path) as own:
        assert held(tmp_path) == [own]


def test_a_process_id_that_is_used_again_is_no_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scratch_folder(tmp_path) as folder:
        monkeypatch.setattr(scratch, "_start", lambda pid: "later")
        sweep_scratch(tmp_path)
        assert not folder.exists()


@pytest.mark.parametrize("place", [("other", "b", "n"), ("h", "b", "other")])
def test_what_another_host_or_container_uses_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: tuple[str, str, str]
) -> None:
    monkeypatch.setattr(scratch, "_place", lambda: ("h", "b", "n"))
    with scratch_folder(tmp_path) as folder:
        monkeypatch.setattr(scratch, "_place", lambda: place)
        monkeypatch.setattr(scratch, "_start", lambda pid: "")
        sweep_scratch(tmp_path)
        assert folder.is_dir()


def test_what_was_left_before_a_reboot_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "_place", lambda: ("h.example", "before", "n"))
    with scratch_folder(tmp_path) as folder:
        monkeypatch.setattr(scratch, "_place", lambda: ("h.example", "after", "n"))
        sweep_scratch(tmp_path)
        assert not folder.exists()


def test_files_of_others_are_left(tmp_path: Path) -> None:
    for name in ("notes", "a.b.c.d.e.f", f"x.{os.getpid()}"):
        (tmp_path / "scratch" / name).mkdir(parents=True)
    sweep_scratch(tmp_path)
    assert len(held(tmp_path)) == 3
    sweep_scratch(tmp_path / "missing")
