"""Option texts as people type them."""

import pytest

from tuner.cli.options import read_bits, read_budgets, read_duration, read_settings, read_size
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
