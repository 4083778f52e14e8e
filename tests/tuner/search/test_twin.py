"""The twin in a study: predictions beside measurements, corrections, confirmation."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.config.settings import EngineConfig
from engine.facts.adjusted_timings import corrected
from engine.facts.emulated_machine import load_machine
from engine.facts.estimated_timings import _read_speed, profiled_timings
from engine.facts.machine import MachineProfile
from engine.memory.plan import resolve
from tests.engine.policy.made import make_trace
from tests.engine.replay import test_native_clock as small
from tests.fakes.fake_engine import facts_of
from tests.fakes.study import tune_in, write_definition
from tests.tuner.conftest import Tune
from tuner.deployment.document import MeasuredMetric, load_deployment
from tuner.search.twin import PARTS, Twin

TOKENS = (1, 4, 16, 64, 256)
PROFILE = MachineProfile(
    {"65536": 5e8, "1048576": 2e9},
    8e9,
    None,
    {
        f"{bits}/{n}": 0.1 * n**0.5 * bits / 16
        for bits in (16, 8, 4, 3, 2)
        for n in (1, 4, 16, 64, 256)
    },
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study of eight trials."""
    folder = tmp_path_factory.mktemp("twin")
    write_definition(folder)
    tune_in(folder, "--definition", "study.yaml", "--trials", "8")
    return folder


@pytest.fixture
def shown(made: Path) -> dict:
    return json.loads(tune_in(made, "show", "small", "--json"))


def test_a_study_keeps_what_was_predicted_and_what_it_spent(shown: dict, made: Path):
    first, *others = shown["trials"]
    assert (first["origin"], first["predicted"]) == ("default", {})
    for trial in others:
        assert trial["predicted"]["output_tps"] > 0
        assert trial["engine_s"] > 0
    assert {"profile", "trace", "twin", "search", "confirm"} <= set(shown["study"]["spent_s"])
    assert shown["explanation"]["twin"]["n"] == len(others)
    cache = made / "cache" / "expertune"
    assert len(list((cache / "traces").glob("*-single.npz"))) == 1
    assert len(list((cache / "predictions").glob("*.npz"))) == 1


def test_the_exported_figures_are_those_of_fresh_processes(shown: dict, made: Path):
    number = shown["recommended"]
    trial = next(trial for trial in shown["trials"] if trial["number"] == number)
    confirmed = trial["confirmed"]["output_tps"]
    assert (trial["source"], confirmed["n"]) == ("confirmed", 3)
    assert trial["metrics"]["output_tps"] == confirmed
    exported = load_deployment(made / "expertune-small.yaml").measured["output_tps"]
    assert isinstance(exported, MeasuredMetric)
    assert (exported.value, exported.n) == (confirmed["value"], 3)


def test_only_what_may_win_is_measured_to_the_end(shown: dict):
    ended = [trial for trial in shown["trials"] if trial["state"] == "PRUNED"]
    for trial in ended:
        assert trial["metrics"]["output_tps"]["n"] == 1
        assert "beats the best that this could reach" in trial["reason"]
    assert all(trial["state"] == "COMPLETE" for trial in shown["front"])


def test_without_confirmation_nothing_runs_again(tune: Tune, folder: Path):
    with (folder / "study.yaml").open("a") as file:
        file.write("confirm_rounds: 0\n")
    done = tune("--definition", "study.yaml", "--json")
    assert done.code == 0, done.err
    assert all(trial["confirmed"] == {} for trial in done.document["trials"])


def test_general_speeds_make_timings_that_grow_with_tokens_and_bits():
    timings = profiled_timings(PROFILE, facts_of("m"), "cpu")
    for bits, curve in timings.expert_s.items():
        times = [curve[n] for n in sorted(curve)]
        assert times == sorted(times)
        assert 0 < timings.sources[bits].rate(2) <= 2e9
    assert timings.expert_s[16][1] > timings.expert_s[4][1]


def test_what_surrounds_an_expert_does_not_grow_with_its_tokens():
    still = MachineProfile({"65536": 2e9}, 8e9, None)  # whose products take what their weights do
    for curve in profiled_timings(still, facts_of("m"), "cpu").expert_s.values():
        assert curve[256] == pytest.approx(curve[2])


def test_an_accelerator_gets_records_over_its_link():
    speeds = {"65536": 2e9, "1048576": 2e9}
    for rate in (1e10, 1e9):
        profile = MachineProfile(speeds, 8e9, rate)
        found = profiled_timings(profile, facts_of("m"), "cuda:0")
        source, disk = found.sources[16], found.disk_sources[16]
        assert (source.rate(2), source.sharing) == (rate, "queued")
        assert (disk.rate(2), disk.sharing) == (pytest.approx(2e9), "shared")


def test_the_host_beside_an_accelerator_is_estimated_too():
    facts, slower = facts_of("m"), {key: 10 * ms for key, ms in PROFILE.kernel_ms.items()}
    assert profiled_timings(PROFILE, facts, "cpu").host_expert_s == {}
    card = replace(PROFILE, link_bytes_per_s=1e10)
    assert profiled_timings(card, facts, "cuda:0").host_expert_s == {}, "nobody timed it"
    timed = replace(card, host_kernel_ms=slower)
    found = profiled_timings(timed, facts, "cuda:0")
    assert found.host_expert_s[16][256] > 5 * found.expert_s[16][256]
    assert found.host_start_s.keys() == found.host_expert_s.keys()
    native = replace(PROFILE, products="native")
    emulated = profiled_timings(native, facts, "emulated:laptop_8gb")
    rate = load_machine("laptop_8gb").slowed_host_bytes_per_s
    for bits, curve in emulated.host_expert_s.items():
        assert min(curve.values()) >= facts.record_bytes[str(bits)] / rate
    assert emulated.ready is None, "the policy is asked before each layer"


def test_a_host_tier_is_predicted_as_large_as_this_machine_allows():
    rng = np.random.default_rng(0)
    chosen = rng.random((40, small.LAYERS, small.EXPERTS)).argsort(-1)[..., : small.CHOSEN]
    trace = make_trace(chosen, tokens=[(1,)] * 40, groups=[0] * 20 + [1] * 20)
    timings = small.timings(1, host=False, sharing="queued", disk=True)
    config = EngineConfig().overlay({"device.name": "cuda:0", "cache.expert_bytes": "25%"})
    config = resolve(config, small.FACTS).config
    half = int(config.host.bytes) // 2

    def speed(host_bytes: int | None, ram_bytes: int = 0) -> float:
        twin = Twin(small.FACTS, trace, timings, 1, host_bytes=host_bytes)
        found = twin._replayed(config.overlay({"budget.ram_bytes": ram_bytes}), timings)
        assert found is not None
        return found["decode_tps"]

    assert speed(half) < speed(None) == speed(2 * half)
    assert speed(half, ram_bytes=10**12) == speed(None), "what --ram allows is not cut"


def test_a_read_costs_a_fixed_part_beside_its_bytes():
    speeds = {"65536": 8e8, "262144": 1.6e9, "1048576": 1.6e9}
    profile = MachineProfile(speeds, 8e9, None)

    def seconds(size: int) -> float:
        return size / _read_speed(profile, size)

    assert seconds(65536) == pytest.approx(65536 / 8e8)
    assert seconds(8192) > 8192 / 8e8  # below what was profiled, latency is what counts
    fixed = seconds(8192) - (seconds(65536) - seconds(8192)) / (65536 - 8192) * 8192
    assert fixed == pytest.approx(65536 / 8e8 - 65536 * (262144 / 1.6e9 - 65536 / 8e8) / 196608)
    assert seconds(1 << 24) == pytest.approx((1 << 24) / 1.6e9)
    falling = MachineProfile({"65536": 2e9, "131072": 4e9}, 8e9, None)
    assert 8192 / _read_speed(falling, 8192) >= 8192 / 4e9


def test_a_correction_scales_the_parts_it_names():
    timings = profiled_timings(PROFILE, facts_of("m"), "cpu")
    found = corrected(timings, {"compute": 2.0, "non_expert": 3.0})
    assert found.expert_s[8][4] == pytest.approx(2 * timings.expert_s[8][4])
    assert found.non_expert_s[1] == pytest.approx(3 * timings.non_expert_s[1])
    assert found.router_s == timings.router_s
    assert np.isfinite(list(found.policy_s.values())).all()


def split(twin: Twin, config: EngineConfig) -> dict[str, float]:
    found = twin._replayed(config, twin.timings) or {}
    return {name[len("time_ms_per_token.") :]: v for name, v in found.items() if "time_ms" in name}


@pytest.mark.parametrize("cache", ["100%", "25%"])
def test_a_run_corrects_the_kind_of_layers_that_took_most_of_its_time(cache: str):
    """Layers that find all experts are passed at once: what one that asks the policy takes says
    nothing of them."""
    timings = replace(small.timings(1, host=False, sharing="shared"), together=True)
    assert timings.ready is not None
    pairs = [[[2 * (row % 2), 2 * (row % 2) + 1]] * small.LAYERS for row in range(12)]
    trace = make_trace(pairs, tokens=[(1,)] * 12, groups=[0] * 6 + [1] * 6)
    twin = Twin(small.FACTS, trace, timings, sequences=1)
    plain = EngineConfig().overlay({"prefetch.predictor": "none"})
    config = plain.overlay({"cache.expert_bytes": cache})
    before = split(twin, config)
    measured = {f"time_ms_per_token.{part}": 3 * before[part] for part in before}
    found = twin.corrected_by(config, measured)
    after = split(found, config)
    assert {"compute", "non_expert", "policy"} <= before.keys()
    for part in before.keys() & set(PARTS):
        assert after[part] == pytest.approx(3 * before[part], rel=0.1), part
    passes = plain.overlay({"cache.expert_bytes": "100%"})
    asks = passes.overlay({"prefetch.predictor": "popularity", "prefetch.depth": 1})
    for other, corrected_too in ((passes, cache == "100%"), (asks, cache != "100%")):
        one, two = split(twin, other), split(found, other)
        assert (two["compute"] > 1.5 * one["compute"]) == corrected_too


def test_what_waits_made_longer_says_nothing_of_runs_that_do_not_wait():
    timings = small.timings(1, host=False, sharing="shared")
    slow = {bits: replace(source, bytes_per_s={1: 1e7}) for bits, source in timings.sources.items()}
    timings = replace(timings, together=True, sources=slow)
    pairs = [[[2 * (row % 2), 2 * (row % 2) + 1]] * small.LAYERS for row in range(12)]
    trace = make_trace(pairs, tokens=[(1,)] * 12, groups=[0] * 6 + [1] * 6)
    twin = Twin(small.FACTS, trace, timings, sequences=1)
    waits = EngineConfig().overlay({"cache.expert_bytes": "25%"})
    before = split(twin, waits)
    assert before["wait"] > 0
    found = twin.corrected_by(
        waits, {f"time_ms_per_token.{part}": 2 * took for part, took in before.items()}
    )
    after = split(found, waits)
    for part in ("compute", "non_expert", "policy"):
        assert after[part] == pytest.approx(2 * before[part], rel=0.1), part
    asks = waits.overlay({"cache.expert_bytes": "100%", "prefetch.predictor": "popularity"})
    for part in ("compute", "non_expert", "policy"):
        assert split(found, asks)[part] == pytest.approx(split(twin, asks)[part], rel=0.05), part
