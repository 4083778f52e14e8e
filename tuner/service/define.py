"""Turns a request into a StudyDefinition: the one place where names become paths, checked first."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from engine.files import short_digest
from engine.types import parse_size_bytes
from tuner.definition.strict_yaml import read_strict
from tuner.definition.study import Budget, Constraints, QualityTasks, StudyDefinition
from tuner.deployment.export import write_atomically
from tuner.errors import DefinitionError, TunerError
from tuner.service.requests import NewStudy, Size
from tuner.service.settings import ServiceSettings
from tuner.study.tasks import with_default_tasks

_TIME = ("trials", "timeout_s")  # without both a study takes an hour


class ForbiddenModelError(TunerError):
    """A model folder that the operator did not allow."""


def define_study(request: NewStudy, settings: ServiceSettings) -> StudyDefinition:
    """Builds the complete definition, with its name; nothing is written.

    Raises ForbiddenModelError for a folder outside the allowed ones, DefinitionError for values
    that no study can have.
    """
    prompts = _prompts_path(request.prompts, settings.folder) if request.prompts else ""
    asked = {
        "model": allowed_model(request.model, settings.models_folders),
        "device": request.device,
        "budget": Budget(
            vram_bytes=_size_bytes(request.vram),
            ram_bytes=_size_bytes(request.ram),
            disk_bytes=_size_bytes(request.disk),
        ),
        "workload": _workload(request),
        "prompts": str(prompts),
        "chat": request.chat,
        "prompt_tokens": request.prompt_tokens,
        "output_tokens": request.output_tokens,
        "sequences": request.sequences,
        "space": request.space.model_dump(by_alias=True, exclude_none=True),
        "objectives": request.objectives,
        "constraints": Constraints(
            min_quality=request.min_quality,
            max_ttft_ms=request.max_ttft_ms,
            max_tpot_ms=request.max_tpot_ms,
        ),
        "quality": QualityTasks(tasks=request.tasks, limit=request.limit),
        **{name: getattr(request, name) for name in _TIME if name in request.model_fields_set},
        "sampler": request.sampler,
        "seed": request.seed,
    }
    definition = read_strict(StudyDefinition, asked, "the request")
    definition = with_default_tasks(definition)
    return definition.model_copy(update={"name": request.name or _default_name(definition)})


def _workload(request: NewStudy) -> str:
    if request.workload and request.prompts:
        raise DefinitionError("workload and prompts both name the text to run: leave one out")
    return request.workload or ""


def write_prompts(request: NewStudy, folder: Path) -> None:
    """Writes the request's prompts to the file that its definition names; the name is their
    hash."""
    if request.prompts:
        path = _prompts_path(request.prompts, folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _prompt_lines(request.prompts))


def allowed_model(name: str, folders: Sequence[Path]) -> str:
    """Returns `demo` and ids unchanged; resolves links of a folder below an allowed one.

    Raises ForbiddenModelError, with the same message whether such a folder exists or not.
    """
    if not name.startswith("/"):
        return name
    path = Path(name).resolve()
    roots = [folder.resolve() for folder in folders]
    if any(root in path.parents for root in roots) and path.is_dir():
        return str(path)
    raise ForbiddenModelError(
        f"'{name}' is no folder below one that this service allows for models: name `demo`, a "
        "Hugging Face id, or ask its operator to start it with --models-folder"
    )


def _size_bytes(size: Size | None) -> int:
    return 0 if size is None else parse_size_bytes(size)


def _default_name(definition: StudyDefinition) -> str:
    tail = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(definition.model).name)[:80].strip("-")
    return f"{tail or 'study'}-{definition.search_digest()[:8]}"


def _prompt_lines(prompts: Sequence[str]) -> str:
    return "".join(f"{json.dumps({'prompt': prompt})}\n" for prompt in prompts)


def _prompts_path(prompts: Sequence[str], folder: Path) -> Path:
    digest = short_digest(_prompt_lines(prompts))
    return folder / "prompts" / f"{digest}.jsonl"
