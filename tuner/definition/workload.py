"""Reads workload files, YAML with prompts in it or in a file, into
engine.contract.requests.Workload."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from engine.contract.requests import Workload
from engine.files import short_digest
from tuner.definition.prompts import load_prompts
from tuner.definition.strict_yaml import Strict, load_yaml, read_strict
from tuner.errors import DefinitionError


class WorkloadFile(Strict):
    """The keys of a workload YAML.

    prompts: a path relative to the file, or the texts themselves; continuations: only with texts.
    """

    name: str
    prompts: str | list[str]
    continuations: list[str] = Field(default=[])
    chat: bool = False
    prompt_tokens: int = Field(default=64, ge=1)
    output_tokens: int = Field(default=32, ge=1)
    sequences: int = Field(default=4, ge=1)


def load_workload(path: Path, **changes: Any) -> Workload:
    """Reads a workload YAML and the prompts it names.

    changes: fields given on the command line (chat, prompt_tokens, ...); None keeps the file's.
    """
    file = read_strict(WorkloadFile, load_yaml(path), str(path))
    _check_continuations(file, path)
    if isinstance(file.prompts, str):
        prompts, continuations = load_prompts(path.parent / file.prompts)
    else:
        prompts, continuations = tuple(file.prompts), tuple(file.continuations)
    if not prompts:
        raise DefinitionError(f"{path} has no prompts")
    if not all(prompts):
        raise DefinitionError(f"{path}: prompt {prompts.index('') + 1} is empty: write a word")
    given = {key: value for key, value in changes.items() if value is not None}
    rest = file.model_dump(exclude={"prompts", "continuations"})
    return Workload(prompts=prompts, continuations=continuations, **{**rest, **given})


def _check_continuations(file: WorkloadFile, path: Path) -> None:
    """Raises DefinitionError unless there are none, or one text for each prompt of this file."""
    if not file.continuations:
        return
    if isinstance(file.prompts, str):
        raise DefinitionError(
            f"{path}: continuations stand beside prompts in the same file; {file.prompts} brings "
            "its own"
        )
    if len(file.continuations) != len(file.prompts) or not all(file.continuations):
        raise DefinitionError(
            f"{path}: {len(file.prompts)} prompts need as many continuations that are not empty, "
            f"or none; it has {len(list(filter(None, file.continuations)))}"
        )


def workload_from_prompts(path: Path, **changes: Any) -> Workload:
    """Builds a workload from the user's own prompts; other fields are defaults or as given."""
    prompts, continuations = load_prompts(path)
    given = {key: value for key, value in changes.items() if value is not None}
    return Workload(path.stem, prompts, continuations, **given)


def workload_hash(workload: Workload) -> str:
    """16 hex digits over everything that a run of it depends on."""
    text = json.dumps(workload.to_json(), sort_keys=True)
    return short_digest(text)
