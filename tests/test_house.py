"""The layout: folders by concept, no loose files, no long ones, one line that says what each is."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("engine", "tuner", "dashboard")
LOOSE = {
    "engine": {"__init__.py", "errors.py", "files.py", "types.py"},
    "tuner": {
        "__init__.py", "__main__.py", "errors.py", "folders.py", "formatting.py", "statistics.py",
    },
}  # fmt: skip
MOST_LINES = 400


def loose_files(package: Path) -> set[str]:
    return {path.name for path in package.glob("*.py")}


def long_files(folder: Path) -> list[str]:
    files = (
        path for path in folder.rglob("*.py") if len(path.read_text().splitlines()) > MOST_LINES
    )
    return sorted(str(path.relative_to(folder)) for path in files)


def undescribed(package: Path) -> list[str]:
    """Folders with code whose `__init__` is not one line."""
    found = []
    for folder in {path.parent for path in package.rglob("*.py")}:
        if "migrations" in folder.parts:
            continue
        init = folder / "__init__.py"
        text = ast.get_docstring(ast.parse(init.read_text())) if init.is_file() else None
        if not text or "\n" in text:
            found.append(str(folder.relative_to(package)))
    return sorted(found)


def unspecified_encodings(folder: Path) -> list[str]:
    """Places that read or write a text file in whatever encoding the machine has."""
    found = []
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                by_path = node.func.attr in ("read_text", "write_text")
                if by_path and "encoding" not in {word.arg for word in node.keywords}:
                    found.append(f"{path.relative_to(folder)}:{node.lineno}")
    return found


@pytest.mark.parametrize("package", LOOSE)
def test_no_file_stands_loose(package: str):
    assert loose_files(ROOT / package) == LOOSE[package]


@pytest.mark.parametrize("folder", [*PACKAGES, "experiments", "scripts"])
def test_no_file_is_long(folder: str):
    assert long_files(ROOT / folder) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_says_in_one_line_what_it_is(package: str):
    assert undescribed(ROOT / package) == []


@pytest.mark.parametrize("folder", [*PACKAGES, "experiments", "scripts"])
def test_text_is_utf_8_on_every_machine(folder: str):
    # LANG=C and old code pages: a config.json with an accent could not be read
    assert unspecified_encodings(ROOT / folder) == []


def test_the_checks_find_what_they_look_for(tmp_path: Path):
    (tmp_path / "room").mkdir()
    (tmp_path / "loose.py").write_text("x = 1\n" * (MOST_LINES + 1))
    (tmp_path / "room" / "a.py").write_text("path.read_text()\n")
    (tmp_path / "__init__.py").write_text('"""One."""\n')
    assert loose_files(tmp_path) == {"__init__.py", "loose.py"}
    assert long_files(tmp_path) == ["loose.py"]
    assert undescribed(tmp_path) == ["room"]
    assert unspecified_encodings(tmp_path) == ["room/a.py:1"]
