"""Strategies for hypothesis that make wrong documents of right ones.

Trees are edited where they stand: a value is dropped, doubled, negated, made huge, given another
type, exchanged with another, nested, or replaced by what has broken parsers before. Bytes are cut,
flipped, repeated and overwritten.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.documents import Pairs, Raw, Tree, places, write

Draw = Callable[[st.SearchStrategy[Any]], Any]
# At the borders of types; what means something to paths, tables and parsers; what is no scalar.
NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 7, 255, 2**31, -(2**31), 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30,
    10**400, 0.5, -0.5, 1e-320, 1e308, 1.5e9, Raw("1e999"), Raw("-1e999"), Raw("NaN"), Raw("-0"),
    Raw("-Infinity"), Raw("9" * 400), Raw("9" * 5000), Raw("1.0"), Raw("01"),
)  # fmt: skip
TEXTS: tuple[Any, ...] = (
    "", " ", "0", "-1", "1.5", "1e9", "auto", "true", "nan", "inf", "25%", "-5%", "nan%", "8GB",
    "\u00e9\u2028\x85", "\x00", "a\x00b", "\x1b[31m", "\u202eabc", "\ufeff", "\U0001f600", ".",
    "..", "../../../etc/passwd", "/", "/dev/zero", "/proc/self/mem", "~", "~nobody/x", "a/b",
    "x" * 5000, "file:///etc/passwd", "C:\\x", "9" * 400, "9" * 5000, "1" * 20_000 + "!",
    "1h" * 20_000, "8" + " " * 20_000 + "!", "{% for a in b %}", "%s%n", "'; DROP TABLE x;--",
    Raw('"\\ud800"'), Raw('"\\udc00\\ud800"'), Raw('"\\u0000"'), Raw("'"),
)  # fmt: skip
SHAPES: tuple[Any, ...] = (
    None, True, False, [], Pairs(), [[]], [None], ["a", "a"], Pairs([["", ""]]), [0] * 3000,
    Pairs([["a", Pairs()]]), Raw("[" * 3000 + "]" * 3000), Raw('{"a":' * 70 + "1" + "}" * 70),
    Raw(""), Raw("}"),
)  # fmt: skip
SCALARS = (*NUMBERS, *TEXTS, *SHAPES)
YAML_SCALARS: tuple[Any, ...] = tuple(
    map(
        Raw,
        (
            "!!bool x", '!!int ""', '!!float ""', '!!int "-"', "!!float .", "!!binary aGk=",
            '!!binary "%"', "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!null x", "=",
            "!!timestamp 2020-13-45", "2026-02-31", "2026-11-30T25:61:61Z", "!!str [a]",
            "!!seq {a: 1}", "!!map [a]", "!!python/name:os.system", "!x y", "!<tag:a,b> c",
            "0x" + "f" * 5000, "0b2", "0b1", "0o7", "0x", "010", "1_000", "_1", "1:30", "190:20:30",
            "+.inf", "-.inf", ".nan", ".", "-", "~", "&a [*a]", "*none", "&a {<<: *a}",
            "{<<: 1}", "{<<: [1]}", "{? [a] : b}", "{? {a: b} : c}", "{1: a, 1.0: b}", "|\n  x",
            "{<<: {a: 1}, a: 2}", "yes", "off", "? a", "%YAML 9.9", "---", "...", "@a", "`a`",
        ),
    )
)  # fmt: skip
TOKENS = (b"\x00", b"\xff", b"\xff" * 8, b"\n", b"\r", b"{", b"}", b"[" * 200, b'"', b"\\", b"\x80",
          b"\xef\xbb\xbf", b"\xed\xa0\x80", b"PK\x03\x04", b"\x7f\xff\xff\xff\xff\xff\xff\xff",
          b"-", b"e99999", b"," * 50, b"\xf0\x9f\x98\x80")  # fmt: skip


def swept(seeds: Sequence[Tree], extra: Sequence[Any] = ()) -> Iterator[Tree]:
    """Every place of every tree with every scalar in it, one at a time, in a random order."""
    odd = (*SCALARS, *extra)
    whole = [(seed, place) for seed in seeds for place in range(len(places(seed)))]
    numbers = list(range(len(whole) * len(odd)))
    random.shuffle(numbers)
    for number in numbers:
        seed, place = whole[number // len(odd)]
        tree = copy.deepcopy(seed)
        holder, index = places(tree)[place]
        holder[index] = copy.deepcopy(odd[number % len(odd)])
        yield tree


@st.composite
def edited(
    draw: Draw, seeds: Sequence[Tree], extra: Sequence[Any] = (), most_edits: int = 4
) -> Tree:
    """One of the trees with some edits. extra: scalars beside those of every format."""
    tree = copy.deepcopy(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, most_edits))):
        found = places(tree)
        if not found:
            return copy.deepcopy(draw(st.sampled_from(SCALARS)))
        holder, index = draw(st.sampled_from(found))
        draw(st.sampled_from(EDITS))(draw, tree, holder, index, extra)
    return tree


def _replace(draw: Draw, tree: Tree, holder: list[Any], index: int, extra: Sequence[Any]) -> None:
    alike = TEXTS if isinstance(holder[index], str) else NUMBERS
    pools = [alike, alike, SCALARS, *([extra] if extra else [])]
    holder[index] = copy.deepcopy(draw(st.sampled_from(draw(st.sampled_from(pools)))))


def _invent(draw: Draw, tree: Tree, holder: list[Any], index: int, extra: Sequence[Any]) -> None:
    holder[index] = draw(st.text(max_size=20) | st.integers() | st.floats() | st.booleans())


def _drop(draw: Draw, tree: Tree, holder: list[Any], index: int, extra: Sequence[Any]) -> None:
    owner = _owner(tree, holder)
    if owner is not None:  # the whole pair
        owner.remove(holder)
    else:
        del holder[index]


def _double(draw: Draw, tree: Tree, holder: list[Any], index: int, extra: Sequence[Any]) -> None:
    owner = _owner(tree, holder)
    times = draw(st.sampled_from((1, 1, 1, 300)))
    if owner is not None:
        owner.extend(copy.deepcopy([holder] * min(times, 3)))
    else:
        holder.extend(copy.deepcopy([holder[index]] * times))


def _scale(draw: Draw, tree: Tree, holder: list[Any], index: int, extra: Sequence[Any]) -> None:
    value = holder[index]
    if isinstance(value, int | float) and not isinstance(value, bool):
        ways: tuple[Callable[[Any], Any], ...] = (
            lambda x: -x, lambda x: x + 1, lambda x: x - 1, lambda x: x * 1000, lambda x: x * 0,
            lambda x: x // 2, lambda x: x + 0.5, lambda x: x * 10**18,
        )  # fmt: skip
        holder[index] = draw(st.sampled_from(ways))(value)
    else:
        _replace(draw, tree, holder, index, extra)


def _retype(draw: Draw, tree: Tree, holder: list[Any], index: int, extra: Sequence[Any]) -> None:
    value = holder[index]
    ways: tuple[Callable[[Any], Any], ...] = (
        lambda x: write(x)[:4000], lambda x: [x], lambda x: Pairs([["a", x]]), bool, lambda x: None,
        lambda x: Pairs(map(list, enumerate(x))) if isinstance(x, list) else [x, x],
        lambda x: len(x) if isinstance(x, str | list) else str(x)[:4000],
    )  # fmt: skip
    holder[index] = draw(st.sampled_from(ways))(copy.deepcopy(value))


def _exchange(draw: Draw, tree: Tree, holder: list[Any], index: int, extra: Sequence[Any]) -> None:
    other, place = draw(st.sampled_from(places(tree)))
    one, two = copy.deepcopy(holder[index]), copy.deepcopy(other[place])
    holder[index], other[place] = two, one


def _misspell(draw: Draw, tree: Tree, holder: list[Any], index: int, extra: Sequence[Any]) -> None:
    text = str(holder[index])[:200]
    cut = draw(st.integers(0, len(text)))
    holder[index] = text[:cut] + draw(st.sampled_from(("", "x", ".", "\n", "é", "\x00"))) + text[
        cut + draw(st.integers(0, 2)) :
    ]  # fmt: skip


EDITS = (
    _replace,
    _replace,
    _replace,
    _replace,
    _invent,
    _drop,
    _double,
    _scale,
    _scale,
    _retype,
    _exchange,
    _misspell,
)


def _owner(tree: Tree, pair: list[Any]) -> Pairs | None:
    """The mapping that holds a pair, None if this is a plain list."""
    if isinstance(tree, Pairs):
        if any(one is pair for one in tree):
            return tree
        inside: list[Any] = [value for _, value in tree]
    else:
        inside = tree if isinstance(tree, list) else []
    return next((found for one in inside if (found := _owner(one, pair)) is not None), None)


@st.composite
def damaged(draw: Draw, seeds: Sequence[bytes]) -> bytes:
    """One of the byte strings with some damage."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(data)))
        end = min(len(data), begin + draw(st.sampled_from((0, 1, 2, 4, 8, 64, 1000))))
        way = draw(st.integers(0, 5))
        if way == 0:
            del data[begin:]
        elif way == 1 and begin < len(data):
            data[begin] ^= 1 << draw(st.integers(0, 7))
        elif way == 2:
            del data[begin:end]
        elif way == 3:
            data[begin:begin] = data[begin:end]
        elif way == 4:
            data[begin:end] = draw(st.sampled_from(TOKENS))
        else:
            data[begin:begin] = draw(st.binary(max_size=16))
    return bytes(data)
