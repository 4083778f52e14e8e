"""Programs and packages that some tests need.

Missing: skipped with what to install, or failed under .ci/run.
"""

import importlib.util
import os
import shutil
from typing import NoReturn

import pytest

PACKAGES = {"gcc": "gcc", "chromium": "chromium", "initdb": "postgresql"}


def require_program(name: str) -> str:
    """The program's path; skips the test (fails it when EXPERTUNE_REQUIRE_TOOLS is set)."""
    found = shutil.which(name)
    if found is None:
        _miss(f"{name} is missing: apt-get install {PACKAGES.get(name, name)}")
    return found


def require_package(extra: str) -> None:
    """A Python package that an extra of the same name installs."""
    if importlib.util.find_spec(extra) is None:
        _miss(f"{extra} is missing: pip install -c constraints.txt -e '.[{extra}]'")


def _miss(message: str) -> NoReturn:
    if os.environ.get("EXPERTUNE_REQUIRE_TOOLS"):
        pytest.fail(message)
    pytest.skip(message)
