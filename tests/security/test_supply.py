"""`make sbom` and `make audit`: what they list is what runs, and no data is no success."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from tuner.folders import SOURCE

MAKEFILE = (SOURCE / "Makefile").read_text(encoding="utf-8")
SBOM, AUDIT = SOURCE / "scripts" / "sbom.py", SOURCE / "scripts" / "audit.py"
PINNED = dict(
    line.split("==") for line in (SOURCE / "constraints.txt").read_text().split() if "==" in line
)
TOOLS = (SOURCE / "scripts" / "security_tools.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def sbom(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the tool writes."""
    name = "cyclonedx-py"
    own = SOURCE / "build" / "security" / "bin"
    path = os.pathsep.join([str(own), os.environ["PATH"]])
    if not shutil.which(name, path=path):
        pytest.skip(f"{name} is missing: `make sbom` installs it")
    made = tmp_path_factory.mktemp("sbom") / "sbom.json"
    command = [sys.executable, str(SBOM), str(made)]
    variables = {**os.environ, "PATH": path}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 0, done.stderr
    return json.loads(made.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("target", "script"), [("sbom", SBOM), ("audit", AUDIT)])
def test_the_targets_call_the_scripts(target: str, script: Path) -> None:
    assert re.search(rf"^{target}: \$\(SECURITY\)\n\t.*{script.name}", MAKEFILE, re.MULTILINE)
    assert target in re.findall(r"^\.PHONY:(.*)", MAKEFILE, re.MULTILINE)[0].split()


def test_the_tools_are_pinned() -> None:
    lines = [line for line in TOOLS.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert {"cyclonedx-bom", "cyclonedx-python-lib", "pip_audit"} <= {
        s.split("==")[0] for s in lines
    }


def test_the_sbom_lists_what_runs_here_with_versions_and_addresses(sbom: Any) -> None:
    installed = {canonicalize_name(one.name): one.version for one in distributions()}
    listed = {canonicalize_name(one["name"]): one for one in sbom["components"]}
    assert len(listed) == len(sbom["components"]) > 80
    for name, one in listed.items():
        assert one["version"] == installed[name]
        assert one["purl"] == f"pkg:pypi/{name}@{installed[name].replace('+', '%2B')}"
    assert {"torch", "transformers", "lm-eval", "fastapi", "streamlit", "psycopg"} <= listed.keys()
    assert not {"pytest", "ruff", "mypy", "cyclonedx-bom", "pip-audit", "ray"} & listed.keys()


def test_its_versions_are_the_pinned_ones(sbom: Any) -> None:
    pinned = {canonicalize_name(name): version for name, version in PINNED.items()}
    for one in sbom["components"]:
        name = canonicalize_name(one["name"])
        if name in pinned:  # torch, with what it brings, has a range
            assert one["version"] == pinned[name], name


def test_its_root_is_the_project(sbom: Any) -> None:
    assert (sbom["bomFormat"], sbom["specVersion"]) == ("CycloneDX", "1.6")
    root = sbom["metadata"]["component"]
    assert (root["name"], root["type"]) == ("expertune", "application")
    (own,) = [one for one in sbom["dependencies"] if one["ref"] == root["bom-ref"]]
    direct = {ref.split("==")[0] for ref in own["dependsOn"]}
    assert {"torch", "optuna", "uvicorn", "streamlit"} <= direct


PIP_AUDIT = """\
#!{python}
import json, sys
wanted = [line.strip().split("==") for line in open(sys.argv[2])]
kind = "{kind}"
if kind == "down":
    sys.exit("ERROR:pip_audit._cli:Failed to connect")
vulns = [{{"id": "PYSEC-1", "fix_versions": ["9"], "aliases": [], "description": ""}}]
told = []
for name, version in wanted:
    one = {{"name": name, "version": version, "vulns": []}}
    if kind == "mirror":
        one = {{"name": name, "skip_reason": "Dependency not found on PyPI"}}
    elif kind != "empty" and (version == "2.10" or (kind == "found" and name == "torch")):
        one["vulns"] = vulns
    told.append(one)
print(json.dumps({{"dependencies": told, "fixes": []}}))
"""


@pytest.mark.parametrize(
    ("kind", "code", "says"),
    [
        ("clean", 0, "0 vulnerable"),
        ("found", 1, "PYSEC-1, fixed in 9"),
        ("down", 3, "not audited: the data of 'pypi' cannot be reached (ERROR:pip_audit"),
        ("mirror", 3, "Dependency not found on PyPI"),
        ("empty", 3, "it knows nothing of jinja2 2.10"),
    ],
)
def test_an_audit_without_data_is_no_success(
    tmp_path: Path, kind: str, code: int, says: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    made = tmp_path / "pip-audit"
    made.write_text(PIP_AUDIT.format(python=sys.executable, kind=kind), encoding="utf-8")
    made.chmod(0o755)
    monkeypatch.syspath_prepend(str(AUDIT.parent))
    script = importlib.import_module("audit")
    monkeypatch.setattr(script, "tool", lambda _: str(made))
    assert script.audit("pypi") == code
    printed = capsys.readouterr()
    assert says in printed.out + printed.err
    assert len(printed.err.splitlines()) == (1 if code == 3 else 0)
