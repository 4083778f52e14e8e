"""The Dockerfile, read and not built: what it copies is there, and versions and numbers agree."""

import ast
import json
import re
import tomllib

from packaging.specifiers import SpecifierSet

from tuner.deployment.formats import pod
from tuner.folders import SOURCE

PROJECT = tomllib.loads((SOURCE / "pyproject.toml").read_text())


def read_instructions(text: str) -> list[tuple[str, str]]:
    """(INSTRUCTION, rest) in order; comments are left out, continued lines joined."""
    plain = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    lines = [line for line in plain.replace("\\\n", " ").splitlines() if line.strip()]
    return [
        (word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)
    ]


INSTRUCTIONS = read_instructions((SOURCE / "Dockerfile").read_text())
STAGES = [n for n, (word, _) in enumerate(INSTRUCTIONS) if word == "FROM"]
IGNORED = (SOURCE / ".dockerignore").read_text().splitlines()
LAST = INSTRUCTIONS[STAGES[-1] :]


def sources(instructions: list[tuple[str, str]]) -> list[str]:
    """What COPY takes from the source tree."""
    found = []
    for word, rest in instructions:
        if word == "COPY" and not rest.startswith("--from"):
            found += rest.split()[:-1]
    return found


def argument(name: str) -> str:
    """The default of a build argument."""
    (found,) = {rest.partition("=")[2] for word, rest in INSTRUCTIONS
                if word == "ARG" and rest.startswith(f"{name}=")}  # fmt: skip
    return found


def environment() -> dict[str, str]:
    """What the last stage sets."""
    text = " ".join(rest for word, rest in LAST if word == "ENV")
    return dict(pair.split("=", 1) for pair in text.split())


def test_what_is_copied_is_in_the_source_tree():
    assert sources(INSTRUCTIONS)
    for name in sources(INSTRUCTIONS):
        assert (SOURCE / name).exists(), name


def test_every_package_and_file_that_an_installation_reads_is_copied():
    project = PROJECT["project"]
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    packed = {name.partition("/")[0] for name in wheel["only-include"]}
    hook = "hatch_build.py"
    read = {*packed, project["readme"], *project["license-files"], "pyproject.toml", hook}
    assert read <= set(sources(INSTRUCTIONS))


def test_versions_are_ones_that_the_project_allows():
    assert argument("PYTHON_VERSION") in SpecifierSet(PROJECT["project"]["requires-python"])
    (torch,) = [d for d in PROJECT["project"]["dependencies"] if d.startswith("torch>")]
    assert argument("TORCH_VERSION") in SpecifierSet(torch.removeprefix("torch"))


def test_its_comments_name_this_version():
    named = re.findall(r"expertune:([0-9.]+)", (SOURCE / "Dockerfile").read_text())
    assert set(named) == {PROJECT["project"]["version"]}


def test_it_runs_as_the_user_that_pods_run_as():
    (user,) = [rest for word, rest in LAST if word == "USER"]
    assert user == f"{pod.USER}:{pod.USER}"
    (made,) = [rest for word, rest in LAST if word == "RUN" and "useradd" in rest]
    assert f"--uid {pod.USER}" in made


def test_it_starts_tune_behind_an_init():
    (entry,) = [json.loads(rest) for word, rest in LAST if word == "ENTRYPOINT"]
    assert entry == ["tini", "--", "tune"]
    assert "tune" in PROJECT["project"]["scripts"]


def test_everything_that_is_written_goes_into_the_volume():
    (volume,) = [rest for word, rest in LAST if word == "VOLUME"]
    assert volume == pod.DATA
    written = {name: environment()[name] for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "HF_HOME")}
    assert all(folder.startswith(f"{volume}/") for folder in written.values())
    assert {"WORKDIR": volume}.items() <= dict(LAST).items()


def test_extras_that_it_installs_exist():
    extras = PROJECT["project"]["optional-dependencies"]
    text = (SOURCE / "Dockerfile").read_text()
    named = [argument("EXTRAS"), *re.findall(r"--build-arg EXTRAS=(\S+)", text)]
    assert all(extra in extras for words in named for extra in words.split(","))


def test_its_health_check_asks_the_server_that_it_exposes():
    (check,) = [rest for word, rest in LAST if word == "HEALTHCHECK"]
    program = json.loads(check.partition("CMD ")[2])
    assert program[:2] == ["python", "-c"]
    ast.parse(program[2])
    assert "/healthz" in program[2]
    (port,) = [rest for word, rest in LAST if word == "EXPOSE"]
    assert environment()["HEALTH_PORT"] == port == str(pod.PORT)


def test_nothing_but_what_is_copied_reaches_a_build():
    lines = [line for line in IGNORED if line and not line.startswith(("#", "**/"))]
    assert lines[0] == "*"
    assert {line.removeprefix("!") for line in lines[1:]} == set(sources(INSTRUCTIONS))
