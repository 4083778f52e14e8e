"""Names for a cluster: always valid, and different for different studies."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.deployment.formats.names import LONGEST, cluster_name


@given(st.text(max_size=200))
def test_any_text_becomes_a_label_that_services_take(text: str):
    name = cluster_name("expertune", text)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert len(name) <= LONGEST


@pytest.mark.parametrize(("one", "other"), [("a_b", "a-b"), ("A", "a"), ("x" * 90, "x" * 91)])
def test_two_studies_never_share_a_name(one: str, other: str):
    assert cluster_name("expertune", one) != cluster_name("expertune", other)


def test_a_plain_name_stays_as_it_is():
    assert cluster_name("expertune", "demo-3") == "expertune-demo-3"
