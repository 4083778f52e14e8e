"""YAML that people write, and that this program writes and reads back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.definition.strict_yaml import dump_yaml, parse_yaml
from tuner.errors import DefinitionError

# Characters that PyYAML changes or drops in some style (omry/omegaconf#829), among plain ones.
ODD = st.text(
    st.sampled_from("\x85\u2028\u2029\ufeff\r\n \t\x00\x1b\x7f\xa0'\"#:-|>a\U0010ffff\ufffe")
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | ODD


@given(st.lists(TEXTS, max_size=4))
def test_every_text_survives(texts: list[str]):
    data = {"prompts": texts, "nested": [{"key": text} for text in texts]}
    assert parse_yaml(dump_yaml(data), "here") == data


@given(TEXTS)
def test_every_key_survives(text: str):
    assert parse_yaml(dump_yaml({text: 1}), "here") == {text: 1}


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("a: 1\nbudget: {x: 1}\nbudget: {x: 2}\n", "budget", 3),  # yaml/pyyaml#165
        ("a:\n  b: {c: 1, c: 2}\n", "c", 2),
        ("a: [{b: 1, b: 1}]\n", "b", 1),
        ("1: a\n1: b\n", "1", 2),
    ],
)
def test_a_key_that_stands_twice_is_refused(text: str, key: str, line: int):
    with pytest.raises(DefinitionError, match=f"line {line} is not safe YAML: the key '{key}'"):
        parse_yaml(text, "here")


def test_merged_keys_may_be_overridden():
    text = "base: &base {a: 1, b: 2}\nmine: {<<: *base, b: 3}\n"
    assert parse_yaml(text, "here")["mine"] == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    "text", ["[" * 5000, "a: !!python/object:os.system x\n", "a: b: c\n", "\x01"]
)
def test_what_cannot_be_read_is_one_sentence(text: str):
    with pytest.raises(DefinitionError, match=r"^here.* is not (safe|readable) YAML"):
        parse_yaml(text, "here")


def test_json_in_yaml_may_escape_pairs_but_no_halves():
    assert parse_yaml('{"a": "\\ud83d\\ude00"}', "here") == {"a": "\U0001f600"}
    with pytest.raises(DefinitionError, match="half of a surrogate pair"):
        parse_yaml('{"a": "\\ud83d"}', "here")
