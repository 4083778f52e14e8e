"""Verifying and comparing exported configs."""

import json
import math
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tuner.conftest import Tune
from tuner.deployment.compare import compare
from tuner.deployment.document import (
    Deployment,
    MeasuredMetric,
    load_deployment,
    parse_deployment,
)

FILE = "expertune-small.yaml"


def rewrite(path: Path, change: Any) -> Path:
    """The file with its measured figures changed."""
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return path


def metric(value: float, half: float = 0.0, n: int = 3) -> MeasuredMetric:
    return MeasuredMetric(value=value, low=value - half, high=value + half, n=n, unit="")


def scale_speed(factor: float) -> Any:
    """Lets the file record an output_tps this many times its own."""

    def change(data: Any) -> None:
        for name in ("value", "low", "high"):
            data["measured"]["output_tps"][name] *= factor

    return change


def test_a_config_that_holds_is_inside_its_band(tune: Tune, study: Path):
    done = tune("verify", FILE, "--json")
    assert done.code == 0, done.err
    found = done.document
    assert (found["inside"], found["outcome"], found["over_budget"]) == (True, "holds", None)
    assert found["load"] == {"others_cpu_fraction": None, "sentinel_spread": 1.0, "busy": False}
    assert [one["metric"] for one in found["verdicts"]] == ["output_tps", "tpot_ms"]
    for one in found["verdicts"]:
        low, high = one["band"]
        assert 0.85 < low / one["expected"] < high / one["expected"] < 1.15
        assert low <= one["found"]["value"] <= high
        assert one["found"]["n"] >= 2


def test_a_config_that_is_slower_than_its_file_says_fails(tune: Tune, study: Path):
    rewrite(study / FILE, scale_speed(1.5))
    done = tune("verify", FILE)
    assert done.code == 1
    assert "% slower" in done.out
    assert "tune again" in done.out
    found = tune("verify", FILE, "--json").document
    assert (found["outcome"], found["inside"]) == ("slower", False)


def test_a_config_that_is_faster_passes_and_says_by_how_much(tune: Tune, study: Path):
    rewrite(study / FILE, scale_speed(0.5))
    done = tune("verify", FILE)
    assert done.code == 0, done.err
    assert re.search(r"(9\d|10\d)% faster", done.out)
    found = tune("verify", FILE, "--json").document
    assert (found["outcome"], found["inside"]) == ("faster", True)
    speed = found["verdicts"][0]
    assert (speed["verdict"], speed["gain"]) == ("faster", pytest.approx(2, rel=0.05))


def test_slower_on_a_busy_machine_is_to_be_run_again(tune: Tune, study: Path, misbehave):
    misbehave(("busy", "measure", None))
    assert tune("verify", FILE).code == 0  # what holds all the same, holds
    rewrite(study / FILE, scale_speed(1.5))
    done = tune("verify", FILE)
    assert done.code == 4
    assert "other programs used 40% of the processor" in done.out
    assert "run again" in done.out
    found = tune("verify", FILE, "--json").document
    assert (found["outcome"], found["inside"], found["load"]["busy"]) == ("busy", False, True)


def test_more_memory_than_the_budget_fails_whatever_the_load(tune: Tune, study: Path, misbehave):
    misbehave(("over_budget", "measure", None), ("busy", "measure", None))
    done = tune("verify", FILE)
    assert done.code == 1
    assert "the budget is" in done.out


def test_a_file_without_speeds_has_nothing_to_verify(tune: Tune, study: Path):
    def without(data: Any) -> None:
        del data["measured"]["output_tps"], data["measured"]["tpot_ms"]

    rewrite(study / FILE, without)
    done = tune("verify", FILE)
    assert (done.code, "nothing to compare" in done.err) == (2, True)


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
