"""Reads durations as people write them: 25m, 1h30m, 1:30:00, 90 s, or plain seconds."""

from __future__ import annotations

import re

from engine.types import LONGEST_TEXT

MOST_S = 1e9  # thirty years; more is a slip, and no clock can add it
_UNITS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_WORDS = {
    word: unit
    for unit, words in (
        ("d", "d day days"),
        ("h", "h hr hrs hour hours"),
        ("m", "m min mins minute minutes"),
        ("s", "s sec secs second seconds"),
        ("ms", "ms"),
    )
    for word in words.split()
}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)[\s,]*")
_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{2})")


def parse_duration_s(text: str | float) -> float:
    """Read a duration in seconds; a number without a unit is seconds, `1:30:00` hours first.

    Raises ValueError with one sentence that says what is allowed, also for more than MOST_S.
    """
    word = str(text).strip().lower()
    if len(word) > LONGEST_TEXT:
        raise ValueError(_allowed(text))
    try:
        found = float(word)
    except ValueError:
        found = _clock_s(word) if ":" in word else _parts_s(word)
    if found > MOST_S and found != float("inf"):
        raise ValueError(f"'{str(text)[:40]}' is more than thirty years: write a shorter duration")
    if not 0 <= found < float("inf"):
        raise ValueError(_allowed(text))
    return found


def _parts_s(word: str) -> float:
    parts = _PART.findall(word)
    units = [_WORDS.get(unit) for _, unit in parts]
    # every unit once, the larger first: 30m1h and 5m5m are more likely slips than meant
    orders = [list(_UNITS).index(unit) for unit in units if unit]
    whole = bool(parts) and not _PART.sub("", word) and None not in units
    if not whole or orders != sorted(set(orders)):
        raise ValueError(_allowed(word))
    return sum(float(number) * _UNITS[_WORDS[unit]] for number, unit in parts)


def _clock_s(word: str) -> float:
    match = _CLOCK.fullmatch(word)
    if match is None or match.group(1) is None:
        raise ValueError(_allowed(word))  # 1:30 may be minutes or hours
    hours, minutes, seconds = map(int, match.groups())
    return hours * 3600.0 + minutes * 60 + seconds


def _allowed(text: object) -> str:
    given = str(text)[:40]
    return f"'{given}' is no duration: write 25m, 1h30m, 90s or 1:30:00 (plain numbers are seconds)"
