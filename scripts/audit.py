"""Asks whether packages that expertune runs on have known vulnerabilities, by pip-audit.

In: the packages of scripts/sbom.py, as installed here. Exits with 0 if none is known, 1 if some are
(listed), 3 if the vulnerability data could not be reached for every package: then nothing is known.
`make audit` calls it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.version import Version
from sbom import needed, tool

FOUND, UNKNOWN = 1, 3
# Its vulnerabilities are known for years: where none is reported, there is no data.
PROBE = {"jinja2": "2.10"}
LIMIT_S = 600


class UnreachedError(Exception):
    """There is no answer about some package; the message says why."""


def ask(packages: Mapping[str, str], service: str) -> list[dict[str, Any]]:
    """What pip-audit says of each package and version. Raises UnreachedError."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "packages.txt"
        lines = (f"{name}=={version}\n" for name, version in packages.items())
        wanted.write_text("".join(lines), encoding="utf-8")
        command = [tool("pip-audit"), "-r", str(wanted), "--disable-pip", "--no-deps"]
        command += ["--vulnerability-service", service, "--format", "json"]
        command += ["--progress-spinner", "off", "--timeout", "15"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=LIMIT_S
            )
        except subprocess.TimeoutExpired:
            raise UnreachedError(f"no answer within {LIMIT_S} s") from None
    try:
        told: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        raise UnreachedError(last[:300]) from None
    skipped = [one for one in told if "skip_reason" in one]
    if skipped or len(told) < len(packages):
        why = skipped[0]["skip_reason"] if skipped else "no answer"
        raise UnreachedError(f"{len(skipped)} of {len(packages)} packages are unknown there: {why}")
    return told


def audit(service: str) -> int:
    """Print what is known, and return the exit code."""
    # a build of one's own index (2.9.1+cpu) is its public version's code
    installed = {name: Version(one.version).public for name, one in needed().items()}
    try:
        if not any(one["vulns"] for one in ask(PROBE, service)):
            raise UnreachedError("it knows nothing of jinja2 2.10, which is known to be vulnerable")
        told = ask(installed, service)
    except UnreachedError as error:
        print(f"not audited: the data of '{service}' cannot be reached ({error})", file=sys.stderr)
        return UNKNOWN
    vulnerable = [one for one in told if one["vulns"]]
    for one in vulnerable:
        for vulnerability in one["vulns"]:
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
            print(f"{one['name']} {one['version']}: {vulnerability['id']}, fixed in {fixed}")
    print(f"{len(told)} packages audited with '{service}', {len(vulnerable)} vulnerable")
    return FOUND if vulnerable else 0


def main() -> None:
    """Audit with the service that the command names."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--service", choices=("pypi", "osv"), default="pypi")
    sys.exit(audit(parser.parse_args().service))


if __name__ == "__main__":
    main()
