"""Chooses the weight files of a folder or a hub repository, as from_pretrained would.

In: file names and config.json. Out: the names to read. Leftovers beside the weights (hidden files,
another copy, Mistral's consolidated.*, adapters) are never read in their place: where two files
could be meant, the folder is refused.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError
from engine.inputs.bounds import MOST_JSON_BYTES, parse_json, read_bounded

log = logging.getLogger(__name__)

SUFFIX = ".safetensors"
SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_PICKLES = re.compile(r"(pytorch_model.*\.bin|.*\.(pt|pth|ckpt))")
_NUMBERED = re.compile(r"(.*?)-?(\d+)-of-(\d+)\.safetensors")
_OTHERS = ("consolidated", "adapter_model")  # other formats of the same weights, and parts of them


class WeightMap(dict[str, str]):
    """Tensor name -> the file that holds it, from an index."""

    @property
    def files(self) -> list[str]:
        """The files, sorted."""
        return sorted(set(self.values()))


def read_json(path: Path) -> Any:
    """The content of a JSON file; raises CheckpointError that says what is wrong with it."""
    try:
        data = read_bounded(path, MOST_JSON_BYTES, regular=True)
        if data.startswith(LFS_POINTER):
            raise lfs_pointer(path)
        return parse_json(data.decode("utf-8-sig"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}): copy it again") from None


def starts_as_pointer(path: Path) -> bool:
    """Whether a file is git-lfs's pointer to it."""
    with path.open("rb") as stream:
        return stream.read(len(LFS_POINTER)) == LFS_POINTER


def lfs_pointer(path: Path) -> CheckpointError:
    """The error for a file that git cloned without its content."""
    return CheckpointError(
        f"{path} is a pointer of git-lfs, not the file itself: run `git lfs install` and `git lfs "
        f"pull` in {path.parent}, or download the model again"
    )


def refuse_broken_link(path: Path) -> None:
    """Raise CheckpointError for a link that leads nowhere, as in a copy of a hub's snapshot."""
    if path.is_symlink() and not path.exists():
        raise CheckpointError(
            f"{path} is a link to {path.readlink()}, which is not there: copy the folder with its "
            "content (`cp -rL`), or download the model again"
        )


def read_index(folder: Path, config: Mapping[str, Any]) -> WeightMap | None:
    """The weight map of a folder's index; None if it has no index.

    Raises CheckpointError for an index that cannot be read or that points outside its folder.
    """
    named = _named(config)
    path = folder / (named if named.endswith(".json") else INDEX_NAME)
    if not path.is_file():
        return None
    found = read_json(path)
    entries = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(v, str) for v in entries.values()):
        raise CheckpointError(f"{path} is no safetensors index: copy it again")
    outside = [file for file in entries.values() if Path(file).name != file]
    if outside:
        raise CheckpointError(f"{path} points outside its folder: {outside[0]}")
    return WeightMap(entries)


def weight_files(folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """The weight files of a folder. Raises CheckpointError as choose_weight_files does."""
    names = [file.name for file in folder.iterdir() if file.is_file()]
    try:
        chosen = choose_weight_files(folder, names, read_index(folder, config), config)
    except CheckpointError:
        for file in sorted(folder.glob(f"*{SUFFIX}")):
            refuse_broken_link(file)
        raise
    return [folder / name for name in chosen]


def choose_weight_files(
    place: object, names: Collection[str], index: WeightMap | None, config: Mapping[str, Any]
) -> list[str]:
    """The files to read, sorted. place: of the messages.

    As from_pretrained: the file that config.json's `transformers_weights` names; else
    model.safetensors; else the index's files. Without them: the only file there is, or a complete
    numbered set. Raises CheckpointError if there is none, if some are missing, or if more than one
    could be meant.
    """
    own = [name for name in names if name.lower().endswith(SUFFIX) and not name.startswith(".")]
    if named := _named(config):
        return _present(place, index.files if index and named.endswith(".json") else [named], own)
    if SINGLE_NAME in own and SINGLE_NAME not in (index or {}).values():
        if index is not None:
            log.warning("%s: %s is read, not the files of the index beside it", place, SINGLE_NAME)
        return [SINGLE_NAME]
    if index is not None:
        return _present(place, index.files, own)
    return _without_index(place, names, own)


def _named(config: Mapping[str, Any]) -> str:
    """The weights or index that config.json names, else ""."""
    named = config.get("transformers_weights")
    known = isinstance(named, str) and named.endswith((SUFFIX, f"{SUFFIX}.index.json"))
    return str(named) if known and Path(str(named)).name == named else ""


def _present(place: object, wanted: list[str], own: Collection[str]) -> list[str]:
    missing = [name for name in wanted if name not in own]
    if missing:
        alike = [name for name in own if name.lower() == missing[0].lower()]
        raise CheckpointError(
            f"{place} lacks {len(missing)} of {len(wanted)} weight files, first {missing[0]}: "
            + (f"rename {alike[0]}, its index has it so" if alike else "finish the download")
        )
    return wanted


def _without_index(place: object, names: Collection[str], own: Collection[str]) -> list[str]:
    plain = sorted(name for name in own if not name.startswith(_OTHERS))
    if not plain:
        raise _no_weights(place, names, own)
    if len(plain) == 1 and not _NUMBERED.fullmatch(plain[0]):
        return plain
    sets: dict[tuple[str, int], set[int]] = {}
    for match in filter(None, map(_NUMBERED.fullmatch, plain)):
        sets.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    if len(sets) == 1 and sum(map(len, sets.values())) == len(plain):
        ((_, total), found) = next(iter(sets.items()))
        if len(found) < total:
            raise CheckpointError(
                f"{place} has {len(found)} of {total} weight files: finish the download"
            )
        return plain
    raise CheckpointError(
        f"{place} has {len(plain)} weight files ({', '.join(plain[:3])}) and neither "
        f"{SINGLE_NAME} nor {INDEX_NAME} to tell which are the model's: move the others away, or "
        "copy the index too"
    )


def _no_weights(place: object, names: Collection[str], own: Collection[str]) -> CheckpointError:
    if own:
        return CheckpointError(
            f"{place} has {', '.join(sorted(own)[:2])}, which transformers does not load (Mistral's"
            " own format, or an adapter): give the checkpoint with model*.safetensors, or merge "
            "the adapter"
        )
    pickles = sorted(name for name in names if _PICKLES.fullmatch(name))
    if pickles:
        return CheckpointError(
            f"{place} holds pickle weights ({pickles[0]}), which can run code and are refused: "
            "convert the checkpoint to safetensors"
        )
    gguf = sorted(name for name in names if name.lower().endswith(".gguf"))
    if gguf:
        return CheckpointError(
            f"{place} holds GGUF weights ({gguf[0]}), which are not read here: give the "
            "checkpoint in safetensors that they were made from"
        )
    return CheckpointError(f"{place} has a config.json but no *.safetensors weights")
