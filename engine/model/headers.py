"""Reads a hub model's description and headers before its weights are fetched.

Each safetensors file of the hub becomes a sparse file of the same tensors without their data, so
that code that reads only headers works on such a folder as on the real one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError
from huggingface_hub.utils._safetensors import TensorInfo

from engine.derived.file import DerivedKind, drop, load_json, save_json
from engine.errors import CheckpointError
from engine.model.hub import Check, Hub, Location, Snapshot, answered, locate

DESCRIPTION = DerivedKind("description of a model", 1, "it is asked of the hub again")


def locate_headers(
    model: str,
    revision: str | None,
    cache_folder: Path,
    *,
    hub: Hub | None = None,
    check: Check | None = None,
) -> Location:
    """A folder that describes a model: the model's own if it is local, else one without weights.

    cache_folder: where such folders are kept. Raises what `locate` does, and CheckpointError if the
    hub's files are not safetensors.
    """
    hub = hub or Hub.from_environment()
    if hub.offline or Path(model).expanduser().exists() or model.count("/") != 1:
        return locate(model, revision, hub=hub, check=check)
    wanted = None if revision == "local" else revision
    return answered(
        model,
        wanted,
        hub,
        lambda: _describe(Snapshot.of(model, wanted, hub), hub, cache_folder, check),
    )


def _describe(snapshot: Snapshot, hub: Hub, cache_folder: Path, check: Check | None) -> Location:
    if (whole := snapshot.complete_folder()) is not None:
        return Location(whole, snapshot.commit)
    name = snapshot.model.replace("/", "--")
    folder = cache_folder / "descriptions" / name / snapshot.commit
    contents = folder.with_name(f"{snapshot.commit}.json")
    if _is_described(folder, contents):
        return Location(folder, snapshot.commit)
    described = snapshot.fetch_description(check)
    partial = folder.with_name(f"{snapshot.commit}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    api = HfApi(endpoint=hub.endpoint)
    for weights in snapshot.weight_names():
        try:
            found = api.parse_safetensors_file_metadata(
                snapshot.model, weights, revision=snapshot.commit
            )
        except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
            raise CheckpointError(
                f"'{snapshot.model}': {weights} is no safetensors file ({error})"
            ) from None
        _write_hollow(partial / weights, found.tensors)
    for file in described.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            shutil.copyfile(file, partial / file.name)
    shutil.rmtree(folder, ignore_errors=True)
    save_json(contents, DESCRIPTION, _digests(partial))
    partial.replace(folder)
    return Location(folder, snapshot.commit)


def _is_described(folder: Path, contents: Path) -> bool:
    """Whether the folder holds what was written there; if not, its list of contents is dropped."""
    kept = load_json(contents, DESCRIPTION, dict)
    if kept is None or not folder.is_dir():
        return False
    if kept != _digests(folder):
        drop(contents, DESCRIPTION, f"{folder} does not hold what it lists")
        return False
    return True


def _digests(folder: Path) -> dict[str, str]:
    """Size and SHA-256 of every file; of the header alone where the tensors have no data."""
    return {file.name: _digest(file) for file in sorted(folder.iterdir()) if file.is_file()}


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        hollow = file.suffix == ".safetensors"
        length = int.from_bytes(stream.read(8), "little") + 8 if hollow else -1
        stream.seek(0)
        size_bytes = file.stat().st_size
        held = stream.read(min(length, size_bytes))
    return f"{size_bytes} {hashlib.sha256(held).hexdigest()}"


def _write_hollow(path: Path, tensors: dict[str, TensorInfo]) -> None:
    """Write a sparse safetensors file of these tensors, whose data takes no disk space."""
    entries = {
        name: {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": list(tensor.data_offsets),
        }
        for name, tensor in tensors.items()
    }
    header = json.dumps(entries).encode()
    data_bytes = max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + data_bytes)
