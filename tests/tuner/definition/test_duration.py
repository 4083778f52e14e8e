"""Durations as people write them."""

import pytest

from tuner.definition.duration import MOST_S, parse_duration_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("25m", 1500), ("1h30m", 5400), ("1h 30min", 5400), ("1.5h", 5400), ("90", 90),
        ("90.5", 90.5), ("90 s", 90), ("2 hours", 7200), ("1 day, 2 hours", 93_600),
        ("1:30:00", 5400),
        ("500ms", 0.5), ("0", 0), (" 25M ", 1500), (60, 60),
    ],
)  # fmt: skip
def test_every_spelling_is_read(text: str, seconds: float):
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "-5", "1:30", "m", "5x", "5m5m", "30m1h", "inf", "nan", "1h30", "25 parsecs"]
)
def test_others_are_one_sentence_that_shows_how(text: str):
    with pytest.raises(ValueError, match="write 25m, 1h30m, 90s"):
        parse_duration_s(text)


@pytest.mark.parametrize("text", ["1" * 200_000 + "!", "9" * 400 + ":00:00"])
def test_a_long_text_is_none_and_takes_no_time(text: str):
    with pytest.raises(
        ValueError, match=r"^'.{1,40}' is no duration"
    ):  # by its square it took minutes
        parse_duration_s(text)


@pytest.mark.parametrize("text", ["1e300", 2 * MOST_S, "99999999h", "12000 days"])
def test_what_no_clock_can_add_is_refused(text: str | float):
    with pytest.raises(ValueError, match="more than thirty years"):
        parse_duration_s(text)
