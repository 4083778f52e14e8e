"""YAML that is small as a file and endless as a value."""

from __future__ import annotations

import pytest
import yaml

from engine.inputs import bounded_yaml
from engine.inputs.bounded_yaml import BoundedYaml

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{below}'] * 10)}]\n"
    for below, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{below}'] * 10)}]}}\n"
    for below, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def load(text: str) -> object:
    return yaml.load(text, Loader=BoundedYaml)


@pytest.mark.parametrize(
    "text",
    [LAUGHS, MERGES, f"a: &a {'x' * 10_000}\nb: [{', '.join(['*a'] * 200)}]\n"],
    ids=["lists", "merges", "texts"],
)
def test_aliases_that_repeat_too_much_are_refused(text: str) -> None:
    with pytest.raises(yaml.YAMLError, match="its aliases repeat too much: write the values out"):
        load(text)


@pytest.mark.parametrize("text", ["[" * 200_000, "a: &a [*a]\n", "a: &a {b: [*a]}\n"])
def test_what_has_no_end_is_refused(text: str) -> None:
    with pytest.raises(yaml.YAMLError, match=r"more than 64 deep|inside its own anchor"):
        load(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("!!bool x", "'x' cannot be read as bool"),
        ("!!int ''", "'' cannot be read as int"),
        ("!!float ''", "'' cannot be read as float"),
        ("[2026-02-31]", "'2026-02-31' cannot be read as timestamp"),
        ("!!map [a]", "expected a mapping node"),
        ("0x" + "f" * 5000, "a whole number has more than 64 bits"),
    ],
)
def test_a_value_that_its_type_does_not_allow_is_refused(text: str, says: str) -> None:
    with pytest.raises(yaml.YAMLError, match=says):
        load(text)


def test_more_keys_and_values_than_any_definition_has_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounded_yaml, "MOST_NODES", 9)
    assert load("a: [1, 2, 3, 4, 5, 6]\n")
    with pytest.raises(yaml.YAMLError, match="more than 9 keys and values"):
        load("a: [1, 2, 3, 4, 5, 6, 7]\n")


def test_aliases_and_nesting_within_the_bounds_are_read() -> None:
    assert load("a: &a [1, 2]\nb: *a\nc: {<<: {d: *a}}\n") == {
        "a": [1, 2], "b": [1, 2], "c": {"d": [1, 2]},
    }  # fmt: skip
    assert load("[" * 64 + "]" * 64)
