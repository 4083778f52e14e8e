"""Verifying and comparing exported configs."""

import json
import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.contract.report import Sentinel
from engine.contract.statistics import quantile
from tests.tuner.conftest import Tune
from tuner.deployment import verify as verify_module
from tuner.deployment.compare import compare
from tuner.deployment.document import (
    Deployment,
    MeasuredMetric,
    MeasuredSentinel,
    load_deployment,
    parse_deployment,
)
from tuner.deployment.verify import band, slow_down

FILE = "expertune-small.yaml"


def rewrite(path: Path, change: Any) -> Path:
    """The file with its measured figures changed."""
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return path


def metric(value: float, half: float = 0.0, n: int = 3) -> MeasuredMetric:
    return MeasuredMetric(value=value, low=value - half, high=value + half, n=n, unit="")


def test_a_config_that_holds_is_inside_its_band(tune: Tune, study: Path):
    done = tune("verify", FILE, "--json")
    assert done.code == 0, done.err
    found = done.document
    assert found["inside"] is True
    assert [one["metric"] for one in found["verdicts"]] == ["output_tps", "tpot_ms"]
    for one in found["verdicts"]:
        low, high = one["band"]
        assert 0.899 < low / one["expected"] < high / one["expected"] < 1.101
        assert low <= one["found"]["value"] <= high
        assert one["found"]["n"] >= 2


def test_a_config_that_is_slower_than_its_file_says_fails(tune: Tune, study: Path):
    def flatter(data: Any) -> None:
        for name in ("value", "low", "high"):
            data["measured"]["output_tps"][name] *= 1.5

    rewrite(study / FILE, flatter)
    done = tune("verify", FILE)
    assert done.code == 1
    assert "OUTSIDE" in done.out
    assert "tune again" in done.out


def test_a_machine_that_drifted_is_not_blamed_on_the_config(tune: Tune, study: Path):
    def as_on_a_machine_twice_as_fast(data: Any) -> None:
        for name in ("value", "low", "high"):
            data["measured"]["output_tps"][name] *= 2
            data["measured"]["tpot_ms"][name] /= 2
            data["measured"]["stall_ms_per_token"][name] /= 2
        for name in ("compute_ms", "read_ms"):
            data["measured"]["sentinel"][name] /= 2

    rewrite(study / FILE, as_on_a_machine_twice_as_fast)
    assert tune("verify", FILE).code == 0


def test_the_sentinel_counts_by_what_the_config_waited_for():
    then, now = MeasuredSentinel(compute_ms=2, read_ms=1), Sentinel(compute_ms=4, read_ms=1)
    measured: Any = {"tpot_ms": metric(10.0), "stall_ms_per_token": metric(7.5)}
    assert slow_down(measured, then, now) == pytest.approx(0.75 * 1 + 0.25 * 2)
    assert slow_down({}, then, now) == 2


@pytest.mark.parametrize("half", [0.0, 0.04, 0.3])
def test_a_band_holds_another_start_and_is_ten_per_cent_wide_at_most(
    half: float, monkeypatch: pytest.MonkeyPatch
):
    assert band(metric(1.0, half)) == 0.10  # starts scatter by more than that allows
    monkeypatch.setattr(verify_module, "START_DEVIATION", 0.02)
    starts = quantile(math.inf) * 0.02 * (1 + 1 / metric(1.0, half).n) ** 0.5
    assert band(metric(1.0, half)) == pytest.approx(min(0.10, math.hypot(2 * half, starts)))


def test_another_model_is_refused(tune: Tune, study: Path):
    rewrite(study / FILE, lambda data: data["model"].update(fingerprint="0" * 16))
    done = tune("verify", FILE)
    assert done.code == 2
    assert "fingerprint" in done.err


def test_two_configs_differ_where_their_intervals_do(study: Path):
    first = load_deployment(study / FILE)
    data = json.loads(first.model_dump_json(by_alias=True))
    data["engine"]["prefetch"]["depth"] = 3
    data["measured"] = {
        "output_tps": metric(120.0, 3).model_dump(),
        "tpot_ms": metric(10.0, 1).model_dump(),
        "sentinel": {"compute_ms": 4.0, "read_ms": 1.0},
    }
    second = parse_deployment(yaml.safe_dump(data))
    data["measured"]["output_tps"] = metric(100.0, 4).model_dump()
    data["measured"]["tpot_ms"] = metric(10.5, 1).model_dump()
    data["measured"]["sentinel"]["compute_ms"] = 2.0
    third: Deployment = parse_deployment(yaml.safe_dump(data))
    found = compare(third, second)
    assert found.settings == {}
    speed, latency = (one for one in found.figures if one.metric != "quality")
    assert speed.ratio is not None
    assert (speed.ratio.value, speed.differs) == (pytest.approx(1.2), True)
    halves = math.hypot(math.log(123 / 117) / 2, math.log(104 / 96) / 2)
    assert math.log(1.2 / speed.ratio.low) == pytest.approx(halves)
    assert not latency.differs
    assert any("2.00 times as long" in note for note in found.notes)
    assert compare(first, third).settings == {"prefetch.depth": (first.config().prefetch.depth, 3)}


def test_compare_takes_studies_and_files(tune: Tune, study: Path):
    done = tune("compare", "small", FILE, "--json")
    assert done.code == 0, done.err
    assert done.document["settings"] == {}
    assert done.document["metrics"]["output_tps"]["ratio"]["value"] == pytest.approx(1)
    shown = tune("compare", "small", FILE, "--pick", "0")
    assert shown.code == 0
    assert "output_tps" in shown.out
    assert tune("compare", "small", "nothing").code == 2


def test_compare_takes_two_trials_of_a_study_whose_name_may_hold_colons(tune: Tune, study: Path):
    assert tune("compare", "small:0", "small:knee", "--json").code == 0
    wrong = tune("compare", "small:fast", FILE)
    assert (wrong.code, "fast" in wrong.err) == (2, True)
    with sqlite3.connect(study / "data" / "expertune" / "expertune.db") as database:
        database.execute("UPDATE study SET name = 'small:4b' WHERE name = 'small'")
    assert tune("compare", "small:4b", FILE, "--json").code == 0
    assert tune("compare", "small:4b:0", FILE, "--json").code == 0
    assert tune("compare", "small:0", FILE).code == 2
