"""Stop strings: however the text is cut, none goes out and nothing before one is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.serve.batching.stop_strings import StopGate

PIECES = st.lists(st.text(alphabet="abc", max_size=3), max_size=12)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3)


@given(PIECES, STOPS, st.text(alphabet="abc", max_size=3), st.integers(0, 12))
def test_what_goes_out_ends_before_the_first_stop_string(
    pieces: list[str], stops: list[str], rest: str, unarmed: int
) -> None:
    gate: StopGate[int] = StopGate(stops)
    pieces = [*pieces, ""] if rest else pieces  # a rest is that of an incomplete character
    out, ended = [], False
    for number, piece in enumerate(pieces):
        out.append(gate.push(piece, number, armed=number >= unarmed))
        if ended := out[-1].ended:
            break
    if not ended:
        out.append(gate.finish(rest))
        ended = out[-1].ended
    text = "".join(released.text for released in out)
    passed = "".join(pieces[:unarmed])
    expected, met = _cut(pieces[unarmed:], rest, stops)
    assert (text, ended) == (passed + expected, met)
    for released in out:
        assert "".join(shown.text for shown in released.items) == released.text
    items = [shown.item for released in out for shown in released.items]
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


def test_pieces_are_held_back_only_while_one_may_begin_a_stop_string() -> None:
    gate: StopGate[str] = StopGate(["STOP"])
    assert gate.push("a", "zero") == ("a", (("a", "zero"),), False)
    assert gate.push("b S", "one") == ("", (), False)
    assert gate.push("T", "two") == ("", (), False)
    three = (("b S", "one"), ("T", "two"), ("ART", "three"))
    assert gate.push("ART", "three") == ("b START", three, False)
    assert gate.push("STO", "four") == ("", (), False)
    assert gate.finish() == ("STO", (("STO", "four"),), False)


def test_the_piece_in_which_a_stop_string_begins_is_cut_and_the_rest_dropped() -> None:
    gate: StopGate[str] = StopGate(["."])
    assert gate.push("a", "one") == ("a", (("a", "one"),), False)
    assert gate.push("b. c", "two") == ("b", (("b", "two"),), True)
    assert StopGate(["."]).push(". b", "one") == ("", (), True)


def test_a_part_of_a_character_goes_out_with_the_character() -> None:
    gate: StopGate[str] = StopGate([])
    assert gate.push("", "one") == ("", (), False)
    assert gate.push("\u20ac", "two") == ("\u20ac", (("", "one"), ("\u20ac", "two")), False)
    assert gate.push("", "three") == ("", (), False)
    assert gate.finish("\ufffd") == ("\ufffd", (("\ufffd", "three"),), False)
