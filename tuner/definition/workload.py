"""Reads workloads into engine.contract.requests.Workload and fits them to a model.

In: the name of one in studies/workloads/, a YAML file with prompts in it or beside it, or a file of
the user's own prompts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from engine.config.settings import EngineConfig
from engine.contract.requests import Workload
from engine.errors import nearest_hint
from engine.facts.model import ModelFacts
from engine.files import short_digest
from tuner.definition.prompts import load_prompts
from tuner.definition.strict_yaml import Strict, load_yaml, read_strict
from tuner.errors import DefinitionError
from tuner.folders import studies_folder, user_path

DEFAULT = "demo"  # the workload of who names none


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


@dataclass(frozen=True)
class FittedWorkload:
    """A workload that a model can run. notes: what was changed for it, in sentences."""

    workload: Workload
    notes: tuple[str, ...] = ()


def workload_names() -> tuple[str, ...]:
    """The names of all installed workloads."""
    return tuple(sorted(path.stem for path in (studies_folder() / "workloads").glob("[!.]*.yaml")))


def locate_workload(text: str, folder: Path) -> str:
    """The name of an installed workload as it is, anything else as an absolute path.

    folder: what paths are relative to. Raises DefinitionError with the nearest name for a single
    word that is neither.
    """
    names = workload_names()
    if text in names:
        return text
    path = folder / user_path(text)
    if not path.is_file() and Path(text).name == text and not Path(text).suffix:
        raise DefinitionError(
            f"there is no workload '{text}'{nearest_hint(text, names)} (there are: "
            f"{', '.join(names)}; or name a YAML file)"
        )
    return str(path.resolve())


def load_workload(source: str | Path, **changes: Any) -> Workload:
    """Reads a workload and the prompts it names.

    source: the name of an installed one, or the path of a YAML file; changes: fields given on the
    command line (chat, prompt_tokens, ...); None keeps the file's.
    """
    located = locate_workload(str(source), Path())
    if located in workload_names():
        located = str(studies_folder() / "workloads" / f"{located}.yaml")
    path = Path(located)
    file = read_strict(WorkloadFile, load_yaml(path), str(path))
    _check_continuations(file, path)
    if isinstance(file.prompts, str):
        prompts, continuations = load_prompts(path.parent / user_path(file.prompts))
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


def choose_workload(workload: str, prompts: str, **changes: Any) -> Workload:
    """The user's own prompts if there are any, else the workload that is named, else the default.

    Empty texts name nothing; changes: as in load_workload.
    """
    if prompts:
        return workload_from_prompts(Path(prompts), **changes)
    return load_workload(workload or DEFAULT, **changes)


def fit_workload(workload: Workload, facts: ModelFacts, chat: bool | None = None) -> FittedWorkload:
    """Makes a workload one that the model can run: without a chat template if it has none, and with
    prompts that leave room for the answer.

    chat: what the user asked for, which is kept. An answer that is longer than the model takes is
    left for who checks the capacity.
    """
    notes = []
    if workload.chat and chat is None and not facts.has_chat_template:
        notes.append(f"{facts.id} has no chat template: prompts are run as plain text")
        workload = replace(workload, chat=False)
    fitted = shorten_prompts(workload, facts.max_positions, facts.id)
    return FittedWorkload(fitted.workload, (*notes, *fitted.notes))


def shorten_prompts(workload: Workload, capacity: int, what: str) -> FittedWorkload:
    """Leaves of each prompt what fits a capacity in tokens beside the answer; as it is if nothing
    does. what: the model or file that has this capacity, for the note."""
    room = capacity - workload.output_tokens
    if not 0 < room < workload.prompt_tokens:
        return FittedWorkload(workload)
    note = (
        f"workload '{workload.name}' has {workload.prompt_tokens} + {workload.output_tokens} "
        f"tokens, {what} takes {capacity}: of longer prompts the last {room} tokens are used"
    )
    return FittedWorkload(replace(workload, prompt_tokens=room), (note,))


def needed_capacity(workload: Workload, facts: ModelFacts) -> int:
    """Tokens of a sequence (kv.max_tokens): what the workload needs, the default if that is more
    and the model takes it."""
    needed = workload.prompt_tokens + workload.output_tokens
    usual = EngineConfig().kv.max_tokens
    return max(needed, min(usual, facts.max_positions) if facts.max_positions else usual)


def describe_workload(workload: Workload) -> str:
    """Which text figures speak for, in one line: name, prompts, tokens in and out."""
    template = ", with the chat template" if workload.chat else ""
    return (
        f"workload '{workload.name}', {len(workload.prompts)} prompts of up to "
        f"{workload.prompt_tokens} tokens{template}, {workload.output_tokens} tokens out, "
        f"{workload.sequences} sequences a repeat"
    )


def summarize_workload(workload: Workload) -> dict[str, Any]:
    """The same as JSON-ready data: the workload with the number of its prompts, not their text."""
    summary = {**workload.to_json(), "prompts": len(workload.prompts)}
    del summary["continuations"]
    return summary


def describe_default() -> str:
    """What a user who chose no text should know, in one line."""
    work = load_workload(DEFAULT)
    *first, last = (f"--workload {name}" for name in workload_names() if name != DEFAULT)
    others = f"{', '.join(first)} or {last}" if first else last
    return (
        f"figures speak for documentation texts of {work.prompt_tokens} + {work.output_tokens} "
        f"tokens: choose text like yours with {others}, or your own with --prompts FILE"
    )


def workload_hash(workload: Workload) -> str:
    """16 hex digits over everything that a run of it depends on."""
    text = json.dumps(workload.to_json(), sort_keys=True)
    return short_digest(text)
