"""What a cache brings on a twin of 3.2 GB, and how little memory packing takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
REPEATS = "5"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("twin") / "model"
    widen = [sys.executable, str(ROOT / "scripts/widen_model.py"), str(ROOT / "studies/demo/model")]
    subprocess.run([*widen, str(folder), "--hidden", "8", "--expert", "16"], check=True)
    return folder


def bench(twin: Path, *options: str) -> dict[str, dict[str, Any]]:
    """Rows of `tune bench --json` by name."""
    command = [sys.executable, "-m", "tuner", "bench", "--model", str(twin), "--json", *options]
    workload = ["--workload", str(ROOT / "studies/workloads/demo.yaml")]
    lengths = ["--prompt-tokens", "32", "--output-tokens", "24", "--sequences", "2"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(twin.parent / "cache")}
    done = subprocess.run(
        [*command, *workload, *lengths, "--repeats", REPEATS],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=environment,
    )
    return {row["name"]: row for row in json.loads(done.stdout)["rows"]}


@pytest.mark.parametrize(("bits", "budget", "ratio"), [(16, "1GB", 2.5), (4, "340MB", 1.8)])
def test_a_quarter_of_the_experts_in_slots_beats_loading_on_demand(
    twin: Path, bits: int, budget: str, ratio: float
) -> None:
    settings = ["--set", f"precision.bits={bits}", "--set", "cache.expert_bytes=25%"]
    rows = bench(twin, "--vram", budget, "--policies", "on_demand,lru", *settings)
    assert rows["lru"]["ratio_to_first"]["decode_tps"]["value"] >= ratio


_PACK = """
import sys
from pathlib import Path
from engine.worker.baseline import settle_baseline
base = settle_baseline()
from engine.config.settings import EngineConfig
from engine.device import process_memory
from engine.device.cpu import CpuDevice
from engine.experts.tiers.pack import ensure_pack
from engine.memory.plan import resolve
from engine.run.engine import Engine
engine = Engine(Path(sys.argv[1]), CpuDevice(), Path(sys.argv[2]))
config, _ = resolve(EngineConfig().overlay({"precision.bits": 4}), engine.facts)
record = engine.record_format(config, engine.kernel_support(config))
process_memory.reset_peak()
ensure_pack(Path(sys.argv[2]), engine.model, record)
print(process_memory.peak_resident_bytes() - base)
"""


def test_packing_takes_less_than_1_gb_beyond_the_baseline(twin: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _PACK, str(twin), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(done.stdout.split()[-1]) < 1_000_000_000
