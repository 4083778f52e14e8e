"""Writes the bill of materials (SBOM) of what expertune runs on: CycloneDX JSON, by cyclonedx-py.

In: this Python's environment, of which only the packages count that `expertune[all]` needs here,
not the tools of developers beside them. Out: the file, whose root component is the project of
pyproject.toml, checked against CycloneDX's schema. `make sbom` calls it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
NAME, EXTRAS = "expertune", ("all",)
SPEC = "1.6"


def needed() -> dict[str, Distribution]:
    """The installed packages that the project needs to run, by name, without itself.

    Raises importlib.metadata.PackageNotFoundError if one is missing.
    """
    found: dict[str, Distribution] = {}
    left = [(NAME, extra) for extra in ("", *EXTRAS)]
    seen = set(left)
    while left:
        name, extra = left.pop()
        found[name] = distribution(name)
        for line in found[name].requires or ():
            wanted = Requirement(line)
            if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
                continue
            for one in ("", *wanted.extras):
                key = (canonicalize_name(wanted.name), one)
                if key not in seen:
                    seen.add(key)
                    left.append(key)
    del found[NAME]
    return found


def tool(name: str) -> str:
    """A program's path. Ends the script if there is none."""
    found = shutil.which(name)
    if found is None:
        sys.exit(
            f"{name} is missing: pip install -r scripts/security_tools.txt, in a place of its own"
        )
    return found


def write_sbom(path: Path) -> None:
    """Write the file. Raises subprocess.CalledProcessError if it cannot be made or is not valid."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        # an environment of these packages' records alone, which is all that the tool reads
        venv.create(folder, with_pip=False, symlinks=True)
        (records,) = Path(folder).glob("lib/python*/site-packages")
        for one in needed().values():
            record = Path(str(one._path))  # type: ignore[attr-defined]
            (records / record.name).symlink_to(record)
        options = ["--pyproject", str(PROJECT), "--mc-type", "application"]
        options += ["--spec-version", SPEC, "--output-format", "JSON", "--output-reproducible"]
        options += ["--validate", "--output-file", str(path)]
        subprocess.run([tool("cyclonedx-py"), "environment", *options, folder], check=True)


def main() -> None:
    """Write the file that the command names."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("path", type=Path, help="such as build/sbom.json")
    path = parser.parse_args().path
    try:
        write_sbom(path)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{path} was not made: cyclonedx-py ended with {error.returncode}")
    print(f"{path}: {len(needed())} packages and {NAME} itself, CycloneDX {SPEC}, valid")


if __name__ == "__main__":
    main()
