"""Where a deployment was measured decides its exports, and `auto` does not say it."""

import pytest

from tests.tuner.deployment.formats.made import deployment
from tuner.deployment.formats.place import place_of
from tuner.errors import ExportError


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("cpu", "host"),
        ("cuda:1", "accelerator"),
        ("xpu:0", "accelerator"),
        ("emulated:h100", "emulated"),
    ],
)
def test_the_device_is_a_place(name: str, place: str):
    assert place_of(deployment({"device.name": name}).config()) == place


def test_auto_is_refused():
    with pytest.raises(ExportError, match="write cpu, cuda:0 or what it was"):
        place_of(deployment({"device.name": "auto"}).config())
