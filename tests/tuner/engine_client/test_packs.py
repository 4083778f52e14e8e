"""Listing and removing expert packs."""

from pathlib import Path

import pytest

from tuner.engine_client.packs import list_packs, remove_packs
from tuner.errors import UsageError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, complete in (("a-4b", True), ("b-8b", False)):
        folder = tmp_path / "packs" / name
        folder.mkdir(parents=True)
        (folder / "records.bin").write_bytes(b"x" * 10)
        if complete:
            (folder / "manifest.json").write_text("{}")
    return tmp_path


def test_lists_size_and_completeness(root: Path):
    found = [(pack.name, pack.size_bytes, pack.complete) for pack in list_packs(root)]
    assert found == [("a-4b", 12, True), ("b-8b", 10, False)]


def test_removes_one_by_name(root: Path):
    assert [pack.name for pack in remove_packs(root, "a-4b")] == ["a-4b"]
    assert [pack.name for pack in list_packs(root)] == ["b-8b"]


def test_removes_all(root: Path):
    remove_packs(root, "all")
    assert list_packs(root) == ()


def test_an_unknown_name_names_the_nearest(root: Path):
    with pytest.raises(UsageError, match="the nearest is 'a-4b'"):
        remove_packs(root, "a-4")


def test_no_cache_folder_means_no_packs(tmp_path: Path):
    assert list_packs(tmp_path / "absent") == ()
