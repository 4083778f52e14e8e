"""The build hook: a wheel with the native library where a C++ compiler is found, else without.

EXPERTUNE_NATIVE=off: without. An editable installation builds into the source tree.
"""

from __future__ import annotations

import importlib.util
import os
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

BUILD = Path("engine", "native", "build.py")
COMPILER = "ziglang>=0.13"


class NativeLibraryHook(BuildHookInterface[Any]):
    """Builds the library and adds it to the wheel."""

    def dependencies(self) -> list[str]:
        """A compiler from the package index, if there is none here and the index has it."""
        builder = load_build(Path(self.root))
        if is_off() or builder.is_current() or builder.find_compiler() or not builder.can_fetch():
            return []
        return [COMPILER]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build; what cannot be built is said in one line and left out."""
        builder = load_build(Path(self.root))
        if is_off():
            return
        try:
            builder.build_if_stale()
        except builder.BuildError as error:
            self.app.display_warning(f"without the native library, products are slower: {error}")
            return
        build_data["artifacts"].append(str(builder.LIBRARY.relative_to(self.root)))
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"


def load_build(root: Path) -> ModuleType:
    """engine/native/build.py alone: the packages that `engine` needs are not installed here."""
    spec = importlib.util.spec_from_file_location("expertune_native_build", root / BUILD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_off() -> bool:
    """Whether no library is wanted."""
    return os.environ.get("EXPERTUNE_NATIVE") == "off"
