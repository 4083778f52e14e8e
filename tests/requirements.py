"""Programs and modules that some tests need.

Missing: skipped with what to install, or failed under .ci/run.
"""

import os
import shutil
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import NoReturn

import pytest

from engine.native.build import find_compiler
from engine.native.library import Library, load

PACKAGES = {
    "gcc": "gcc",
    "chromium": "chromium",
    "initdb": "postgresql",
    "qemu-aarch64-static": "qemu-user-static libc6-arm64-cross",
}

EXTRAS = {"gpu": "triton"}
"""Extras whose package has another name."""


def require_program(name: str) -> str:
    """The program's path; skips the test (fails it when EXPERTUNE_REQUIRE_TOOLS is set)."""
    found = shutil.which(name)
    if found is None:
        _missing(f"{name} is missing: apt-get install {PACKAGES.get(name, name)}")
    return found


def require_cplusplus(sanitize: str = "") -> list[str]:
    """A C++ compiler's command, with that -fsanitize; skips (or fails) like require_program."""
    found = find_compiler(sanitize)
    if found is None:
        _missing(
            f"no C++ compiler{sanitize and ' with -fsanitize=' + sanitize}: apt-get install g++"
        )
    return found


def require_extra(name: str) -> None:
    """The package that this extra installs; it is not imported here."""
    if find_spec(EXTRAS.get(name, name)) is None:
        _missing(f"{name} is missing: pip install -c constraints.txt -e '.[{name}]'")


def require_module(name: str, package: str) -> ModuleType:
    """A module that only tests use; skips (or fails) like require_program where it is missing."""
    if find_spec(name) is None:
        _missing(f"{name} is missing: pip install {package}")
    return import_module(name)


def require_native() -> Library:
    """The native library; skips the test, or the module that asks at its top."""
    found = load()
    if isinstance(found, str):
        _missing(f"the native library is missing: {found}")
    return found


def _missing(message: str) -> NoReturn:
    if os.environ.get("EXPERTUNE_REQUIRE_TOOLS"):
        pytest.fail(message)
    pytest.skip(message, allow_module_level=True)
