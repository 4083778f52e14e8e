"""Locates a model: a local folder, or a snapshot of the Hugging Face hub fetched into its cache.

In: a model as the user names it and, for a hub id, a revision. Out: a Location, whose revision is
the fetched commit, so that the same bytes can be requested again. The description (config, index,
tokenizer) comes first and may be refused before any weight is downloaded. Files that are complete
in the cache are not fetched again; a broken download is resumed.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import httpx2
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.hf_api import RepoFile

from engine.errors import CheckpointError, HubError, NotAModelError, StorageError
from engine.model.checkpoint import read_description
from engine.model.weight_files import (
    SINGLE_NAME,
    choose_weight_files,
    read_index,
    refuse_broken_link,
    weight_files,
)
from engine.types import format_bytes

_DESCRIPTION = (".json", ".txt", ".jinja", ".model", ".py")
_ATTEMPTS = 3  # in addition to huggingface_hub's own retries
_MARGIN_BYTES = 64_000_000
_OFFLINE = "HF_HUB_OFFLINE is set"

Check = Callable[[Path], None]

logger = logging.getLogger(__name__)


class Location(NamedTuple):
    """The folder of a model and its revision: a commit, or `local` for a folder."""

    folder: Path
    revision: str


@dataclass(frozen=True)
class Hub:
    """A hub and its local cache. offline: use only the cache."""

    endpoint: str
    cache_folder: Path
    offline: bool = False

    @classmethod
    def from_environment(cls) -> Hub:
        """The hub set by HF_ENDPOINT, HF_HUB_CACHE (or HF_HOME) and HF_HUB_OFFLINE."""
        return cls(constants.ENDPOINT, Path(constants.HF_HUB_CACHE), bool(constants.HF_HUB_OFFLINE))


def locate(
    model: str, revision: str | None = None, *, hub: Hub | None = None, check: Check | None = None
) -> Location:
    """The folder of a model: a local folder, or a hub id, which is fetched.

    revision: a branch, tag or commit of a hub id; `local` (as in a folder's Location) and None
    select the default. check: called with the folder of the description before any weight is
    fetched, and refuses by raising. Raises NotAModelError if neither exists, HubError if the hub
    does not serve it, StorageError if there is not enough disk space.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return Location(folder.resolve(), "local")
    refuse_broken_link(folder)
    if folder.exists():
        raise NotAModelError(
            f"{model} is a file, not a model: give the folder that holds config.json and "
            "*.safetensors, or a Hugging Face id"
        )
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise NotAModelError(
            f"there is no model '{model}': give an existing folder with config.json and "
            "*.safetensors, a Hugging Face id such as Qwen/Qwen3-30B-A3B, or demo"
        )
    wanted = None if revision == "local" else revision
    return fetch(model, wanted, hub or Hub.from_environment(), check)


def fetch(model: str, revision: str | None, hub: Hub, check: Check | None = None) -> Location:
    """The snapshot of a hub id, downloaded if the cache lacks it; offline, from the cache."""
    if hub.offline:
        return _from_cache(model, revision, hub, _OFFLINE)
    return answered(
        model, revision, hub, lambda: _download(Snapshot.of(model, revision, hub), check)
    )


def answered(model: str, revision: str | None, hub: Hub, ask: Callable[[], Location]) -> Location:
    """Query the hub and translate its refusals; the cached snapshot if it does not answer."""
    try:
        return ask()
    except GatedRepoError as error:
        raise HubError(_gated(model, hub, error.response.status_code)) from None
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        raise NotAModelError(
            f"there is no model '{model}' (revision {revision or 'main'}) on {hub.endpoint}: check "
            "its spelling; private models need `hf auth login` or HF_TOKEN"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status < 500:
            raise HubError(
                f"{hub.endpoint} refuses '{model}' with HTTP {status}: log in with `hf auth login` "
                "or set HF_TOKEN to a token that may read it"
            ) from None
        return _from_cache(model, revision, hub, f"{hub.endpoint} answers HTTP {status}")
    except (httpx2.TransportError, OfflineModeIsEnabled, RevisionResolutionError) as error:
        return _from_cache(model, revision, hub, _unreachable(hub, error))
    except LocalEntryNotFoundError as error:
        return _from_cache(model, revision, hub, _unreachable(hub, error.__cause__ or error))
    except OSError as error:
        raise StorageError(
            f"'{model}' cannot be kept in {hub.cache_folder} ({error.strerror or error}): set "
            "HF_HUB_CACHE to a folder that can be written"
        ) from None


@dataclass(frozen=True)
class Snapshot:
    """One commit of a hub id; its files are fetched on request.

    sizes: bytes of the files of its top folder (others hold other formats).
    """

    model: str
    commit: str
    hub: Hub
    sizes: dict[str, int]

    @classmethod
    def of(cls, model: str, revision: str | None, hub: Hub) -> Snapshot:
        """Resolve this revision on the hub; list its files only if the cache lacks some."""
        api = HfApi(endpoint=hub.endpoint)
        resolved = api.resolve_revision(model, revision=revision, cache_dir=hub.cache_folder)
        found = cls(model, resolved.resolved, hub, {})
        if found.complete_folder() is None:
            found.sizes.update(
                {
                    entry.path: entry.lfs.size if entry.lfs else entry.size
                    for entry in api.list_repo_tree(model, revision=found.commit)
                    if isinstance(entry, RepoFile)
                }
            )
        return found

    def complete_folder(self) -> Path | None:
        """The cached folder, if it holds all files of the snapshot."""
        folder = _snapshot_folder(self.model, self.commit, self.hub)
        return folder if folder is not None and not _missing(folder) else None

    def fetch_description(self, check: Check | None) -> Path:
        """Fetch config, index and tokenizer, which `check` may refuse. Returns their folder."""
        named = [name for name in self.sizes if name.endswith(_DESCRIPTION)]
        folder = _get(self.model, self.commit, named, self.hub)
        if check is not None and (folder / "config.json").is_file():
            check(folder)
        return folder

    def weight_names(self) -> list[str]:
        """The weight files, by the description (fetched before) and the file names."""
        folder = _snapshot_folder(self.model, self.commit, self.hub)
        if folder is None or not (folder / "config.json").is_file():
            return []
        config = read_description(folder)
        names = [name for name in self.sizes if "/" not in name]
        return choose_weight_files(self.model, names, read_index(folder, config), config)


def _download(snapshot: Snapshot, check: Check | None) -> Location:
    if (whole := snapshot.complete_folder()) is not None:
        return Location(whole, snapshot.commit)
    folder = snapshot.fetch_description(check)
    lacking = [name for name in snapshot.weight_names() if not (folder / name).is_file()]
    needed_bytes = sum(snapshot.sizes.get(name, 0) for name in lacking)
    _check_disk_space(snapshot.model, needed_bytes, snapshot.hub)
    if lacking:
        _get(snapshot.model, snapshot.commit, lacking, snapshot.hub)
    return Location(folder, snapshot.commit)


def _get(model: str, commit: str, names: Sequence[str], hub: Hub) -> Path:
    """Fetch files of one commit; a broken connection is retried a few times."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return Path(
                snapshot_download(
                    model,
                    revision=commit,
                    cache_dir=hub.cache_folder,
                    endpoint=hub.endpoint,
                    allow_patterns=list(names),
                )
            )
        except httpx2.TransportError as error:
            if attempt == _ATTEMPTS:
                raise
            logger.warning("%s: the connection broke (%s), trying again", model, error)
    raise AssertionError("the loop returns or raises")


def _from_cache(model: str, revision: str | None, hub: Hub, reason: str) -> Location:
    """The cached snapshot, if it is complete; else raises an error that says what to do."""
    api = HfApi(endpoint=hub.endpoint)
    try:
        commit = api.resolve_revision(
            model, revision=revision, cache_dir=hub.cache_folder, local_files_only=True
        ).resolved
    except RevisionResolutionError:
        commit = ""
    folder = _snapshot_folder(model, commit, hub) if commit else None
    if folder is None:
        raise HubError(
            f"'{model}' (revision {revision or 'main'}) is not in {hub.cache_folder}, and {reason}:"
            " connect once so that it can be downloaded, or give a local folder"
        )
    if missing := _missing(folder):
        raise HubError(
            f"the copy of '{model}' in {folder} lacks {len(missing)} files, first {missing[0]}, and"
            f" {reason}: connect, and its download goes on"
        )
    return Location(folder, commit)


def _snapshot_folder(model: str, commit: str, hub: Hub) -> Path | None:
    name = "--".join(["models", *model.split("/")])
    folder = hub.cache_folder.expanduser() / name / "snapshots" / commit
    return folder if folder.is_dir() else None


def _missing(folder: Path) -> list[str]:
    """Files that a snapshot lacks; a complete one has a config and all its weights."""
    if not (folder / "config.json").is_file():
        return ["config.json"]
    config = read_description(folder)
    try:
        weight_files(folder, config)
    except CheckpointError:
        index = read_index(folder, config)
        wanted = index.files if index else [SINGLE_NAME]
        return [name for name in wanted if not (folder / name).is_file()]
    return []


def _check_disk_space(model: str, needed_bytes: int, hub: Hub) -> None:
    folder = hub.cache_folder.expanduser()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed_bytes + _MARGIN_BYTES > free:
        raise StorageError(
            f"'{model}' needs {format_bytes(needed_bytes)} more in {hub.cache_folder}, "
            f"{format_bytes(free)} are free: make room, or set HF_HUB_CACHE to a larger disk"
        )


def _gated(model: str, hub: Hub, status: int) -> str:
    page = f"{hub.endpoint}/{model}"
    if status == 401:
        return (
            f"'{model}' is gated and no valid token was given: accept its conditions on {page}, "
            "then log in with `hf auth login` or set HF_TOKEN"
        )
    return (
        f"'{model}' is gated and your account may not read it yet: accept its conditions on "
        f"{page} and wait until access is granted"
    )


def _unreachable(hub: Hub, error: BaseException) -> str:
    cause = error.__cause__ or error
    return f"{hub.endpoint} cannot be reached ({type(cause).__name__})"
