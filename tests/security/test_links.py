"""Files of a model that are links out of its folder: read as bounded files, or refused."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.derived import arrays
from engine.derived.arrays import parse_arrays
from engine.errors import EngineError
from engine.inputs.bounds import read_bounded
from engine.model.checkpoint import Checkpoint
from engine.model.loader import load_model
from engine.model.tokenizer import has_chat_template, load_tokenizer

NEEDED = ("config.json", "model.safetensors", "tokenizer.json")
OPTIONAL = (
    "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "chat_template.jinja", "chat_template.json", "model.safetensors.index.json",
    "added_tokens.json", "vocab.json", "merges.txt", "additional_chat_templates/a.jinja",
    "tokenizer.model", "processor_config.json", "preprocessor_config.json",
)  # fmt: skip
TARGETS = ("text", "pipe", "socket", "/dev/zero", "/dev/null", "/dev/full", "loop", "folder",
           "absent")  # fmt: skip

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """What a link leads to."""
    path = tmp_path / "target"
    opened = socket.socket(socket.AF_UNIX)
    match request.param:
        case "text":
            path.write_text("root:x:0:0:a secret line:/root:/bin/sh\n")
        case "pipe":
            os.mkfifo(path)
        case "socket":
            opened.bind(str(path))
        case "loop":
            path.symlink_to(path)
        case "folder":
            path.mkdir()
        case "absent":
            pass
        case device:
            path = Path(device)
    yield path
    opened.close()


def read_whole(folder: Path, *, build: bool = True) -> str:
    """What every command reads of a model, and builds of it; the error if it is refused."""
    try:
        Checkpoint(folder)
        has_chat_template(folder)
        load_tokenizer(folder, "it", trust_remote_code=False)
        if build:
            load_model(folder, torch.float32)
    except EngineError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", [*NEEDED, *OPTIONAL])
def test_a_link_out_of_the_folder_is_no_way_to_hang(model: Path, target: Path, name: str) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(target)
    said = read_whole(model, build=name == "generation_config.json")
    assert "secret line" not in said
    assert len(said) < 2000
    if name in NEEDED:
        assert said
        assert len(said.splitlines()) == 1


def test_a_hubs_cache_is_read(tiny: Path, tmp_path: Path) -> None:
    """Whose files are links to ../../blobs."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(tiny.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    assert read_whole(snapshot) == ""


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "folder"])
def test_what_is_no_regular_file_is_not_waited_for(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x" if kind != "/dev/zero" else Path(kind)
    if kind == "pipe":
        os.mkfifo(path)
    if kind == "folder":
        path.mkdir()
    with pytest.raises((ValueError, OSError)):
        read_bounded(path, 10, regular=True)


def packed(tmp_path: Path, megabytes: int) -> bytes:
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(megabytes << 20, np.uint8))
    return (tmp_path / "a.npz").read_bytes()


def test_arrays_are_not_unpacked_beyond_their_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "MOST_UNPACKED_BYTES", 8 << 20)
    small, large = packed(tmp_path, 7), packed(tmp_path, 9)
    assert len(large) < 20_000
    assert parse_arrays(small)["a"].nbytes == 7 << 20
    with pytest.raises(ValueError, match="more than 8 MiB"):
        parse_arrays(large)
    # a member that says less than it holds is cut there, and found out
    header_bytes = 128
    true, lie = ((size << 20) + header_bytes for size in (9, 1))
    lying = large.replace(true.to_bytes(4, "little"), lie.to_bytes(4, "little"))
    assert lying != large
    with pytest.raises(ValueError, match="no arrays"):
        parse_arrays(lying)
