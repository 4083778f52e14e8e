"""Fetching from a hub: pinned, gated, offline, resumed; against a small hub on this machine."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http
from safetensors.torch import load_file, save_file

from engine.errors import CheckpointError, HubError, NotAModelError, StorageError
from engine.model import hub as hub_module
from engine.model.checkpoint import Checkpoint
from engine.model.facts import describe
from engine.model.headers import locate_headers
from engine.model.hub import Hub, Location, locate
from engine.model.loader import load_model
from tests.fakes.hub import FIRST, LATER, MODEL, FakeHub, serving

WEIGHTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture(scope="module")
def folders(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two commits of one model in two shards; the later one has other weights."""
    root = tmp_path_factory.mktemp("commits")
    found = []
    for name, factor in (("first", 1.0), ("later", 2.0)):
        folder = Path(shutil.copytree(tiny_folder, root / name))
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(tensors)
        halves = (names[: len(names) // 2], names[len(names) // 2 :])
        weight_map = {}
        for file, half in zip(WEIGHTS, halves, strict=True):
            save_file({key: tensors[key] * factor for key in half}, folder / file)
            weight_map |= dict.fromkeys(half, file)
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "consolidated.safetensors").write_bytes(b"the same weights in another format")
        found.append(folder)
    return found[0], found[1]


@pytest.fixture
def served(folders: tuple[Path, Path]) -> Iterator[FakeHub]:
    with serving(*folders) as hub:
        yield hub


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub tries again at once; it would wait up to 23 seconds in all."""
    hasty = SimpleNamespace(**{**vars(time), "sleep": lambda _: None})
    for module in (_http, file_download):
        monkeypatch.setattr(module, "time", hasty)


@pytest.fixture
def hub(served: FakeHub, tmp_path: Path) -> Hub:
    return Hub(served.endpoint, tmp_path / "cache")


def test_a_model_is_fetched_once_and_its_commit_is_named(
    served: FakeHub, hub: Hub, folders: tuple[Path, Path]
) -> None:
    found = locate(MODEL, hub=hub)
    assert found.revision == LATER
    assert Checkpoint(found.folder).fingerprint == Checkpoint(folders[1]).fingerprint
    sent = dict(served.sent_bytes)
    assert "consolidated.safetensors" not in sent
    assert locate(MODEL, hub=hub) == found
    assert dict(served.sent_bytes) == sent


def test_a_pinned_commit_is_fetched_and_then_needs_no_hub(
    served: FakeHub, hub: Hub, folders: tuple[Path, Path]
) -> None:
    found = locate(MODEL, FIRST, hub=hub)
    assert Checkpoint(found.folder).fingerprint == Checkpoint(folders[0]).fingerprint
    requests = served.requests
    assert locate(MODEL, FIRST, hub=hub) == Location(found.folder, FIRST)
    assert served.requests == requests


def test_a_broken_connection_is_taken_up_where_it_broke(
    served: FakeHub,
    hub: Hub,
    folders: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chunk = 4096  # huggingface_hub keeps whole chunks; its own of 10 MB would hold this file
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", chunk)
    served.cut = WEIGHTS[1]
    found = locate(MODEL, hub=hub)
    assert served.cut == ""
    assert Checkpoint(found.folder).fingerprint == Checkpoint(folders[1]).fingerprint
    size = (folders[1] / WEIGHTS[1]).stat().st_size
    assert size <= served.sent_bytes[WEIGHTS[1]] < size + chunk


def test_an_interrupted_download_fetches_only_what_lacks(served: FakeHub, hub: Hub) -> None:
    found = locate(MODEL, hub=hub)
    sent = dict(served.sent_bytes)
    (found.folder / WEIGHTS[0]).resolve().unlink()
    (found.folder / WEIGHTS[0]).unlink()
    assert locate(MODEL, hub=hub) == found
    again = {name: count - sent[name] for name, count in served.sent_bytes.items()}
    assert {name for name, count in again.items() if count} == {WEIGHTS[0]}


@pytest.mark.parametrize(
    ("status", "advice"), [(401, "hf auth login"), (403, "wait until access is granted")]
)
def test_a_gated_model_says_what_to_do(served: FakeHub, hub: Hub, status: int, advice: str) -> None:
    served.gate = status
    with pytest.raises(HubError, match=advice) as caught:
        locate(MODEL, hub=hub)
    assert f"{served.endpoint}/{MODEL}" in str(caught.value)


def test_unknown_names_and_revisions_are_named(hub: Hub) -> None:
    with pytest.raises(NotAModelError, match="no model 'tiny/other'"):
        locate("tiny/other", hub=hub)
    with pytest.raises(NotAModelError, match="revision nonsense"):
        locate(MODEL, "nonsense", hub=hub)


def test_offline_and_unreachable_use_the_cached_snapshot(served: FakeHub, hub: Hub) -> None:
    found = locate(MODEL, hub=hub)
    requests = served.requests
    assert locate(MODEL, hub=replace(hub, offline=True)) == found
    assert served.requests == requests
    assert locate(MODEL, hub=replace(hub, endpoint=nobody())) == found
    served.down = True
    assert locate(MODEL, hub=hub) == found


def test_offline_and_unreachable_without_a_snapshot_say_what_to_do(
    served: FakeHub, hub: Hub
) -> None:
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set: connect once"):
        locate(MODEL, hub=replace(hub, offline=True))
    with pytest.raises(HubError, match=r"cannot be reached \(ConnectError\): connect once"):
        locate(MODEL, hub=replace(hub, endpoint=nobody()))
    found = locate(MODEL, hub=hub)
    (found.folder / WEIGHTS[1]).unlink()
    with pytest.raises(HubError, match=rf"lacks 1 files, first {WEIGHTS[1]}"):
        locate(MODEL, hub=replace(hub, offline=True))


def test_a_refusal_comes_before_any_weight(served: FakeHub, hub: Hub) -> None:
    def refuse(folder: Path) -> None:
        assert (folder / "config.json").is_file()
        raise CheckpointError("not this one")

    with pytest.raises(CheckpointError, match="not this one"):
        locate(MODEL, hub=hub, check=refuse)
    assert not set(WEIGHTS) & set(served.sent_bytes)


def test_too_little_room_is_said_before_any_weight(
    served: FakeHub, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(hub.cache_folder.parent)
    monkeypatch.setattr(hub_module.shutil, "disk_usage", lambda _: usage._replace(free=64_000_000))
    with pytest.raises(StorageError, match=r"needs .* more .* HF_HUB_CACHE"):
        locate(MODEL, hub=hub)
    assert not set(WEIGHTS) & set(served.sent_bytes)


def nobody() -> str:
    """An address where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_a_model_is_described_without_its_weights(
    served: FakeHub, hub: Hub, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    found = locate_headers(MODEL, None, tmp_path / "own", hub=hub)
    assert found.revision == LATER
    hollow = load_model(found.folder, torch.bfloat16, weights=False)
    whole = load_model(folders[1], torch.bfloat16)
    differs = {"fingerprint": "", "path": ""}
    assert replace(describe(hollow, MODEL, LATER), **differs) == replace(
        describe(whole, MODEL, LATER), **differs
    )
    for name in WEIGHTS:
        header = int.from_bytes((folders[1] / name).read_bytes()[:8], "little")
        assert 0 < served.sent_bytes[name] < 200_000 + header
        assert (found.folder / name).stat().st_blocks * 512 < (folders[1] / name).stat().st_size
    requests = served.requests
    assert locate_headers(MODEL, LATER, tmp_path / "own", hub=hub) == found
    assert served.requests == requests or served.requests == requests + 1  # the file tree


def test_what_is_here_already_describes_itself(
    served: FakeHub, hub: Hub, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    own = tmp_path / "own"
    assert locate_headers(str(folders[0]), None, own, hub=hub).folder == folders[0].resolve()
    whole = locate(MODEL, hub=hub)
    assert locate_headers(MODEL, None, own, hub=hub) == whole
    offline = replace(hub, offline=True)
    assert locate_headers(MODEL, None, own, hub=offline) == whole
    with pytest.raises(NotAModelError, match="no model"):
        locate_headers("./nothing", None, own, hub=hub)


def test_a_description_is_refused_like_a_model(served: FakeHub, hub: Hub, tmp_path: Path) -> None:
    def refuse(folder: Path) -> None:
        raise CheckpointError("not this one")

    with pytest.raises(CheckpointError, match="not this one"):
        locate_headers(MODEL, None, tmp_path, hub=hub, check=refuse)
    assert not set(WEIGHTS) & set(served.sent_bytes)
    served.gate = 403
    with pytest.raises(HubError, match="gated"):
        locate_headers(MODEL, FIRST, tmp_path, hub=hub)
    served.gate, served.down = 0, True
    with pytest.raises(HubError, match="503"):
        locate_headers(MODEL, FIRST, tmp_path, hub=hub)
