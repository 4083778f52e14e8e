"""StudyDefinition: the complete request for a study, from YAML with options laid over it.

In: studies/*.yaml, command line options. Out: a frozen, complete StudyDefinition. It knows no model
facts and no machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from engine.config.settings import EngineConfig
from engine.contract.requests import TaskOptions, Workload
from engine.errors import ConfigError
from engine.facts.model import ModelFacts
from engine.files import short_digest
from engine.types import format_bytes, parse_size_bytes
from tuner.definition.duration import MOST_S, parse_duration_s
from tuner.definition.objectives import objective_names
from tuner.definition.policies import OWN, policy_settings
from tuner.definition.strict_yaml import Strict, load_yaml, read_strict
from tuner.definition.text import split_words
from tuner.definition.workload import (
    FittedWorkload,
    choose_workload,
    fit_workload,
    locate_workload,
)
from tuner.errors import DefinitionError, UsageError
from tuner.folders import user_path

ObjectiveName = Literal["output_tps", "tpot_ms", "quality"]
SamplerName = Literal["auto", "tpe", "gp", "nsga2", "random", "grid"]
MOST_SEED = 2**31 - 1  # numpy takes 32 bits, and trials add their number
LONGEST_NAME = 100
POLICY = "policy"  # in `space`: presets of studies/policies/, and `own` for no preset
Value = str | int | float | bool
Setting = Value | list[Value]  # a list: options such as precision.options.table


class Budget(Strict):
    """Hard limits in bytes; 0: none given. YAML may write 8GB. curve: smaller device budgets that
    the same study answers, ascending."""

    vram_bytes: int = Field(default=0, ge=0)
    ram_bytes: int = Field(default=0, ge=0)
    disk_bytes: int = Field(default=0, ge=0)
    curve: list[int] = Field(default=[])

    @field_validator("*", mode="before")
    @classmethod
    def _read_size(cls, value: Any) -> Any:
        if isinstance(value, list):
            return [cls._read_size(one) for one in value]
        return parse_size_bytes(value) if isinstance(value, str) and value != "0" else value

    @model_validator(mode="after")
    def _check_curve(self) -> Budget:
        rising = [*self.curve, self.vram_bytes]
        if self.curve and (rising != sorted(set(rising)) or rising[0] <= 0):
            raise ValueError("curve lists device budgets that rise and lie below vram_bytes")
        return self

    @property
    def device_budgets(self) -> tuple[int, ...]:
        """All device budgets of the study, ascending."""
        return (*self.curve, self.vram_bytes)


class Constraints(Strict):
    """The limits that a configuration must satisfy to be chosen."""

    model_config = ConfigDict(allow_inf_nan=False)
    min_quality: float | None = Field(default=None, gt=0, le=1)
    max_ttft_ms: float | None = Field(default=None, gt=0)
    max_tpot_ms: float | None = Field(default=None, gt=0)


class QualityTasks(Strict):
    """lm-eval tasks (names, or paths of task YAML files) and their options.

    limit: items of each; num_fewshot: examples before each item, by default the task's own;
    apply_chat_template: use the model's own; fewshot_as_multiturn: with a template, examples are
    turns.
    """

    tasks: list[str] = Field(default=[])
    limit: int | None = Field(default=None, ge=1)
    num_fewshot: int | None = Field(default=None, ge=0)
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = True

    def options(self, seed: int) -> TaskOptions:
        """The options in the engine's type; turns need a template."""
        return TaskOptions(
            limit=self.limit,
            num_fewshot=self.num_fewshot,
            apply_chat_template=self.apply_chat_template,
            fewshot_as_multiturn=self.apply_chat_template and self.fewshot_as_multiturn,
            seed=seed,
        )


class Repeats(Strict):
    """When a configuration is measured well enough: the 95 % half-width, between min and max
    repeats."""

    model_config = ConfigDict(allow_inf_nan=False)
    min: int = Field(default=3, ge=1)
    max: int = Field(default=7, ge=1)
    half_width: float = Field(default=0.05, gt=0)

    @model_validator(mode="after")
    def _check_order(self) -> Repeats:
        if self.min > self.max:
            raise ValueError(f"min is at most max, which is {self.max} (7 if it is left out)")
        return self


DEFAULT_TIMEOUT_S = 3600.0


class StudyDefinition(Strict):
    """A study.

    engine: settings (paths) fixed for every trial; space: paths and the values to search, over the
    default ones, and `policy` with presets; confirm_rounds: how often the front is measured again,
    each time in a fresh process; stall_s: an engine that makes no progress for so long is stopped
    (0: by operation).
    timeout_s: after it no trial starts (0: never); without it an hour, or as long as it takes if
    trials are given.
    task_tokens: what the tasks need of kv.max_tokens, found before the first trial; workload: the
    name of an installed one or a YAML file; prompts: a file of the user's own prompts instead.
    """

    model_config = ConfigDict(allow_inf_nan=False)
    name: str = ""
    model: str
    device: str = Field(default="auto", min_length=1)
    trust_remote_code: bool = False
    budget: Budget = Budget()
    workload: str = ""
    prompts: str = ""
    chat: bool | None = None
    prompt_tokens: int | None = Field(default=None, ge=1)
    output_tokens: int | None = Field(default=None, ge=1)
    sequences: int | None = Field(default=None, ge=1)
    engine: dict[str, Setting] = Field(default={})
    space: dict[str, list[Value]] = Field(default={})
    objectives: list[ObjectiveName] = Field(default=["output_tps", "tpot_ms", "quality"])
    constraints: Constraints = Constraints()
    quality: QualityTasks = QualityTasks()
    task_tokens: int = Field(default=0, ge=0)
    trials: int = Field(default=24, ge=1)
    timeout_s: float = Field(default=DEFAULT_TIMEOUT_S, ge=0, le=MOST_S)
    sampler: SamplerName = "auto"
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    repeats: Repeats = Repeats()
    confirm_rounds: int = Field(default=3, ge=0)
    stall_s: float = Field(default=0.0, ge=0, le=MOST_S)
    output: str = ""

    @model_validator(mode="before")
    @classmethod
    def _give_time(cls, data: Any) -> Any:
        """Whoever says how many trials means all of them."""
        if isinstance(data, dict) and "trials" in data and "timeout_s" not in data:
            return {**data, "timeout_s": 0.0}
        return data

    @field_validator("objectives", mode="before")
    @classmethod
    def _read_objectives(cls, value: Any) -> Any:
        words = split_words(value) if isinstance(value, str) else value
        return objective_names(words) if isinstance(words, list) else value

    @field_validator("timeout_s", "stall_s", mode="before")
    @classmethod
    def _read_duration(cls, value: Any) -> Any:
        return parse_duration_s(value) if isinstance(value, str) else value

    @field_validator("engine", "space", mode="before")
    @classmethod
    def _check_flat(cls, value: Any) -> Any:
        given = value if isinstance(value, dict) else {}
        if empty := [path for path, inner in given.items() if inner is None]:
            raise ValueError(f"'{empty[0]}' has no value: write one, or leave it out")
        nested = [
            f"{path}.{next(iter(inner), 'name')}"
            for path, inner in given.items()
            if isinstance(inner, dict)
        ]
        if nested:
            raise ValueError(f"settings are named by paths: write `{nested[0]}: ...`")
        return value

    @field_validator("engine")
    @classmethod
    def _check_engine(cls, value: dict[str, Setting]) -> dict[str, Setting]:
        return _check_paths(value)

    @field_validator("space")
    @classmethod
    def _check_space(cls, value: dict[str, list[Value]]) -> dict[str, list[Value]]:
        for path, choices in value.items():
            if not choices:
                raise ValueError(f"'{path}' has no values to search")
            if len({str(choice) for choice in choices}) < len(choices):
                raise ValueError(f"'{path}' has a value twice: {choices}")
            for choice in choices:
                if path == POLICY:
                    _check_policy(choice)
                else:
                    _check_paths({path: choice})
        return value

    @model_validator(mode="after")
    def _check_both(self) -> StudyDefinition:
        if both := sorted(set(self.engine) & set(self.space)):
            raise ValueError(
                f"{', '.join(both)}: fixed by `engine` and searched by `space`: keep one"
            )
        return self

    @property
    def study_name(self) -> str:
        """The study's given name, else the name of its model."""
        return self.name or Path(self.model).name or "study"

    @property
    def output_path(self) -> Path:
        """The file for the recommended config."""
        return Path(self.output or f"expertune-{self.study_name.replace('/', '-')}.yaml")

    def curve_path(self, budget_bytes: int) -> Path:
        """The file for the recommended config of a smaller budget."""
        path = self.output_path
        size = format_bytes(budget_bytes).replace(" ", "")
        return path.with_name(f"{path.stem}-{size}{path.suffix}")

    def search_digest(self) -> str:
        """Hash of everything that makes results comparable; studies of the same name must agree in
        it."""
        free = {
            "name",
            "output",
            "trials",
            "timeout_s",
            "sampler",
            "seed",
            "stall_s",
            "confirm_rounds",
            "task_tokens",
        }
        asked = self.model_dump(mode="json", exclude=free)
        if not self.budget.curve:  # as in studies from before there were curves
            del asked["budget"]["curve"]
        text = json.dumps(asked, separators=(",", ":"), ensure_ascii=False)
        return short_digest(text)

    def load_workload(self) -> Workload:
        """Loads the workload as it was asked for."""
        changes = {
            "chat": self.chat,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "sequences": self.sequences,
        }
        return choose_workload(self.workload, self.prompts, **changes)

    def fitted_workload(self, facts: ModelFacts) -> FittedWorkload:
        """The workload as this model can run it, which is what trials run."""
        return fit_workload(self.load_workload(), facts, self.chat)


def load_definition(path: Path | None, options: dict[str, Any]) -> StudyDefinition:
    """Loads the definition file and lays the command line's options over it.

    options: nested as in the file; None means not given. Paths in a file are relative to it.
    """
    data: dict[str, Any] = {}
    source = "the options"
    if path is not None:
        loaded = load_yaml(path)
        if not isinstance(loaded, dict):
            raise DefinitionError(f"{path} must hold keys and values, such as `model: demo`")
        if "schema" in loaded:
            raise DefinitionError(
                f"{path} is a deployment ({loaded['schema']}), which a study wrote, not the "
                "definition of one: `tune run`, `deploy` and `verify` read it"
            )
        data, source = _anchor(loaded, path.parent), str(path)
    merged = _lay_over(data, options)
    if not merged.get("model"):
        raise DefinitionError("no model was given: add --model (a folder, an id, or `demo`)")
    found = read_strict(StudyDefinition, merged, source)
    _check_name(found.name)
    return found


def definition_json(definition: StudyDefinition) -> dict[str, Any]:
    """The complete definition as JSON-ready data, as the store keeps it."""
    data: dict[str, Any] = json.loads(definition.model_dump_json())
    return data


def _check_name(name: str) -> None:
    """Raises DefinitionError for a name that no line of a table, nor a file's name, could hold."""
    if name and (not name.isprintable() or not name.strip() or len(name) > LONGEST_NAME):
        raise DefinitionError(
            f"the study's name {name[:40]!r}: give one line of printable characters, at most "
            f"{LONGEST_NAME}"
        )


def _lay_over(data: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    merged = dict(data)
    for key, value in options.items():
        if isinstance(value, dict):
            inner = merged.get(key)
            laid = _lay_over(inner if isinstance(inner, dict) else {}, value)
            if laid:
                merged[key] = laid
        elif value is not None:
            merged[key] = value
    return merged


def _anchor(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Makes the paths in a definition file independent of the working folder."""
    data = dict(data)
    if isinstance(data.get("workload"), str) and data["workload"]:
        data["workload"] = locate_workload(data["workload"], folder)
    if isinstance(data.get("prompts"), str) and data["prompts"]:
        data["prompts"] = _beside(data["prompts"], folder)
    if isinstance(data.get("model"), str) and data["model"].startswith("."):
        data["model"] = _beside(data["model"], folder)
    quality = data.get("quality")
    if isinstance(quality, dict) and isinstance(quality.get("tasks"), list):
        files = (".yaml", ".yml")
        tasks = [_beside(t, folder) if str(t).endswith(files) else t for t in quality["tasks"]]
        data["quality"] = {**quality, "tasks": tasks}
    return data


def _beside(name: Any, folder: Path) -> str:
    return str((folder / user_path(str(name))).resolve())


def _check_policy(name: Value) -> None:
    try:
        policy_settings(str(name))
    except UsageError as error:
        raise ValueError(f"{error}, or `{OWN}` for the study's own settings") from None


def _check_paths(values: dict[str, Setting]) -> dict[str, Setting]:
    if "device.name" in values:
        raise ValueError("device.name would be reported, not opened: name it as `device`")
    try:
        EngineConfig().overlay(values)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return values
