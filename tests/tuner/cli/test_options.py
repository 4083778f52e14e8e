"""Option texts as people type them."""

import pytest

from tests.tuner.conftest import Tune
from tuner.cli.options import (
    read_bits,
    read_budgets,
    read_duration,
    read_duration_between,
    read_settings,
    read_size,
)
from tuner.errors import UsageError

GB = 10**9


@pytest.mark.parametrize("text", ["4GB,6GB,8GB", "8GB, 4GB , 6GB", "4GB,6GB,8GB,"])
def test_a_list_of_budgets_is_a_curve(text: str):
    assert read_budgets(text) == {"vram_bytes": 8 * GB, "curve": [4 * GB, 6 * GB]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("4,6,8GB", "each size its unit, 4GB,6GB,8GB"),
        ("8,5GB", r"a decimal takes a point: 8\.5GB"),
        ("8", "8 is 8 bytes: write the unit, 8GB or 8MB"),
        (",", "this command takes one budget"),
    ],
)
def test_a_budget_that_may_mean_two_things_is_refused(text: str, says: str):
    with pytest.raises(UsageError, match=says):
        read_budgets(text)


def test_one_size_is_not_a_list():
    assert read_size("--ram", "64GB") == 64 * GB
    with pytest.raises(UsageError, match=r"--ram 8,5GB: this command takes one budget.*8\.5GB"):
        read_size("--ram", "8,5GB")


def test_settings_may_have_spaces_and_booleans_any_word():
    assert read_settings(["precision.bits = 8, 4", "kv.elastic=true"]) == {
        "precision.bits": ["8", "4"],
        "kv.elastic": ["true"],
    }


def test_bits_may_have_spaces():
    assert read_bits("8, 4 2") == (8, 4, 2)


def test_a_duration_is_named_with_its_option():
    assert read_duration("--timeout", "1h30m") == 5400
    assert read_duration("--timeout", None) is None
    with pytest.raises(UsageError, match="--timeout: 'soon' is no duration: write 25m"):
        read_duration("--timeout", "soon")


def test_what_names_nothing_or_stands_twice_is_refused():
    with pytest.raises(UsageError, match="--bits names none"):
        read_bits("")
    with pytest.raises(UsageError, match=r"--set precision\.bits stands twice"):
        read_settings(["precision.bits=4", "precision.bits=8"])


def test_a_duration_lies_between_its_limits():
    assert read_duration_between("--telemetry", "1m", 1, 300) == 60
    for text in ("0", "6m", "0.5s"):
        with pytest.raises(UsageError, match="write at least 1 s and at most 5 min"):
            read_duration_between("--telemetry", text, 1, 300)


@pytest.mark.parametrize(
    "words",
    [
        ("--model", "m", "--vram", "1GB", "--timeout", "5x"),
        ("--model", "m", "--vram", "1GB", "--timeout=-5"),
        ("--model", "m", "--vram", "1GB", "--timeout", "1e300"),
        ("deploy", "x.yaml", "--drain", "5 parsecs"),
        ("deploy", "x.yaml", "--drain=-1"),
        ("deploy", "x.yaml", "--telemetry", "0"),
        ("deploy", "x.yaml", "--telemetry", "1h"),
    ],
)
def test_a_wrong_duration_ends_a_command_with_one_sentence(tune: Tune, words: tuple[str, ...]):
    done = tune(*words)
    option = words[-1].partition("=")[0] if "=" in words[-1] else words[-2]
    assert (done.code, done.err.count("\n"), option in done.err) == (2, 1, True)
    assert "write " in done.err
