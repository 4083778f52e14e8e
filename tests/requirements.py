"""Programs that some tests need. Missing: skipped with what to install, or failed under .ci/run."""

import os
import shutil

import pytest

PACKAGES = {"gcc": "gcc", "chromium": "chromium", "initdb": "postgresql"}


def require_program(name: str) -> str:
    """The program's path; skips the test (fails it when EXPERTUNE_REQUIRE_TOOLS is set)."""
    found = shutil.which(name)
    if found is not None:
        return found
    message = f"{name} is missing: apt-get install {PACKAGES.get(name, name)}"
    if os.environ.get("EXPERTUNE_REQUIRE_TOOLS"):
        pytest.fail(message)
    pytest.skip(message)
