"""FORMATS: one conformance suite over every format."""

import pytest

from tests.tuner.deployment.formats.made import deployment, facts
from tuner.deployment.formats.registry import FORMATS


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_says_whose_config_it_is(name: str):
    text = FORMATS[name].render(deployment(study="some-study"), facts())
    assert text.endswith("\n")
    assert "some-study" in text
    assert "org/some-moe" in text
    assert "c0ffee" in text


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_renders_the_same_twice(name: str):
    render = FORMATS[name].render
    assert render(deployment(), facts()) == render(deployment(), facts())


@pytest.mark.parametrize("name", FORMATS)
def test_files_of_a_format_can_be_named_and_served(name: str):
    assert FORMATS[name].suffix.startswith(".")
    assert FORMATS[name].mime.count("/") == 1
