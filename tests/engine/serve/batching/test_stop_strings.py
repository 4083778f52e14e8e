"""Stop strings: however the text is cut, none goes out and nothing before one is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.serve.batching.stop_strings import StopGate

PIECES = st.lists(st.text(alphabet="abc", max_size=3), max_size=12)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3)


@given(PIECES, STOPS, st.text(alphabet="abc", max_size=3))
def test_what_goes_out_ends_before_the_first_stop_string(
    pieces: list[str], stops: list[str], rest: str
) -> None:
    gate: StopGate[int] = StopGate(stops)
    text, items, ended = "", [], False
    for number, piece in enumerate(pieces):
        released = gate.push(piece, number)
        text += released.text
        items += released.items
        if released.ended:
            ended = True
            break
    if not ended:
        released = gate.finish(rest)
        text += released.text
        items += released.items
        ended = released.ended
    expected, met = _cut(pieces, rest, stops)
    assert (text, ended) == (expected, met)
    assert items == list(range(len(items)))
    if not met:
        assert len(items) == len(pieces)


def _cut(pieces: list[str], rest: str, stops: list[str]) -> tuple[str, bool]:
    """The text before the first stop string that is whole when a piece has come."""
    so_far = ""
    for piece in [*pieces, rest]:
        so_far += piece
        places = [so_far.find(word) for word in stops if word in so_far]
        if places:
            return so_far[: min(places)], True
    return so_far, False


def test_text_is_held_back_only_while_it_may_begin_a_stop_string() -> None:
    gate: StopGate[str] = StopGate(["STOP"])
    assert gate.push("a S", "one") == ("a ", ("one",), False)
    assert gate.push("T", "two") == ("", (), False)
    assert gate.push("ART", "three") == ("START", ("two", "three"), False)
    assert gate.push("STO", "four") == ("", (), False)
    assert gate.finish() == ("STO", ("four",), False)


def test_what_belongs_to_text_behind_the_stop_string_is_dropped() -> None:
    gate: StopGate[str] = StopGate(["."])
    assert gate.push("a", "one") == ("a", ("one",), False)
    assert gate.push(". b", "two") == ("", (), True)
