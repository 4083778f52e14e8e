"""One timed section at a time, and a profile that is measured once."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from engine.facts.machine import MachineProfile, probe
from tuner.engine_client.machine_profile import KEPT_S, keep_profile, load_profile, profile_path
from tuner.engine_client.timing_lock import needs_turn, timed_section

HOLD = """
import sys, time
from pathlib import Path
from tuner.engine_client.timing_lock import timed_section
with timed_section(Path(sys.argv[1]), "cpu"):
    print("held", flush=True)
    time.sleep(0.6)
"""


def test_a_second_process_waits_for_its_turn(tmp_path: Path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        started = time.monotonic()
        with timed_section(tmp_path, "cpu"):
            waited = time.monotonic() - started
    assert waited > 0.3


def test_accelerators_need_no_turn_on_the_cpu(tmp_path: Path):
    assert needs_turn("emulated:laptop_8gb")
    assert not needs_turn("cuda:0")
    with timed_section(tmp_path, "cuda:0"):
        assert list(tmp_path.iterdir()) == []


def test_a_profile_is_kept_for_a_month(tmp_path: Path):
    path = tmp_path / "profiles" / "machine.json"
    assert load_profile(path) is None
    profile = MachineProfile({"4096": 1e9}, 8e9, None, {"16/1": 0.1})
    keep_profile(path, profile)
    assert load_profile(path) == profile
    old = time.time() - KEPT_S - 1
    os.utime(path, (old, old))
    assert load_profile(path) is None


def test_each_device_has_a_profile_of_its_own():
    machine = probe()
    names = {profile_path(machine, name).name for name in ("cpu", "cuda:0", "emulated:laptop_8gb")}
    assert len(names) == 3


def test_a_profile_of_another_release_is_measured_anew(tmp_path: Path):
    path = tmp_path / "machine.json"
    path.write_text(json.dumps({"read_bytes_per_s": {}}))
    assert load_profile(path) is None
