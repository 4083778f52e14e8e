"""Request documents: names, sizes and settings, each with a pattern and a bound.

Nothing here reaches the file system. Everything that a schema can express is in the schema, so that
the OpenAPI document says exactly what is accepted.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Path, Query
from pydantic import BeforeValidator, ConfigDict, Field, field_validator
from pydantic.config import JsonDict
from pydantic.json_schema import SkipJsonSchema

from engine.types import Bits
from tuner.definition.strict_yaml import Strict
from tuner.definition.study import DEFAULT_TIMEOUT_S, ObjectiveName, SamplerName

STUDY_NAME = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}$"
# `demo`, a Hugging Face id, or an absolute folder, which must lie below an allowed one.
MODEL = (
    r"^(demo|[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
    r"|/[A-Za-z0-9._+ /-]{1,400})$"
)
DEVICE = r"^(auto|emulated:[a-z0-9_]{1,60}|[a-z][a-z0-9_]{0,20}(:[0-9]{1,3})?)$"
SIZE = (
    r"^([1-9][0-9]{0,17}|[1-9][0-9]{0,4}(\.[0-9]{1,3})? ?[kKmMgGtT]?i?[bB]"
    r"|0\.[1-9][0-9]{0,2} ?[kKmMgGtT]i?[bB])$"
)
DURATION = r"^([0-9]{1,7}s?|[0-9]{1,4}m|[0-9]{1,4}h([0-9]{1,2}m)?)$"
SHARE = r"^(auto|(100|[1-9][0-9]?(\.[0-9]{1,3})?)%)$"
TASK = r"^[A-Za-z0-9_+-]{1,100}$"
NO_CONTROLS = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$"

StudyName = Annotated[
    str, Path(pattern=STUDY_NAME, max_length=100, description="Its name.", examples=["demo"])
]
Goal = Literal["knee", "throughput", "latency", "quality"]
WantedModel = Annotated[
    str,
    Query(min_length=1, max_length=512, description="As the study named it.", examples=["demo"]),
]
# A parameter that may be missing, but not `null`, which in a URL is a word.
Missing = SkipJsonSchema[None]
WantedDevice = Annotated[
    Annotated[str, Field(pattern=DEVICE)] | Missing,
    Query(description="cpu, cuda:0; a type alone stands for each of its devices."),
]
WantedVram = Annotated[
    Annotated[str, Field(pattern=SIZE)] | Missing,
    Query(description="Configs of at most this budget.", examples=["8GB"]),
]
WantedGoal = Annotated[Goal, Query(description="What the config should be best in.")]


def _whole(value: object) -> object:
    """Accepts 4.0 as an integer: JSON has one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


UNIQUE: JsonDict = {"uniqueItems": True}
WHOLE = BeforeValidator(_whole)  # after the bounds, so that the schema shows them
Size = Annotated[str, Field(pattern=SIZE)] | Annotated[int, Field(ge=1, le=10**18), WHOLE]
Duration = Annotated[str, Field(pattern=DURATION)] | Annotated[float, Field(ge=0, le=1e7)]
Prompt = Annotated[str, Field(min_length=1, max_length=20_000, pattern=NO_CONTROLS)]
Tokens = Annotated[int, Field(ge=1, le=1 << 20), WHOLE]
Milliseconds = Annotated[float, Field(gt=0, le=1e9)]


class Body(Strict):
    """A request's document: rejects unknown keys, and converts no types."""

    model_config = ConfigDict(strict=True)


class SearchedSettings(Body):
    """Values to search, by config path, in place of the default ones."""

    expert_bytes: list[Annotated[str, Field(pattern=SHARE)]] | None = Field(
        default=None,
        alias="cache.expert_bytes",
        json_schema_extra=UNIQUE,
        min_length=1,
        max_length=32,
        examples=[["25%", "auto"]],
    )
    depth: list[Annotated[int, Field(ge=0, le=8), WHOLE]] | None = Field(
        default=None, alias="prefetch.depth", json_schema_extra=UNIQUE, min_length=1, max_length=9
    )
    bits: list[Annotated[Bits, WHOLE]] | None = Field(
        default=None, alias="precision.bits", json_schema_extra=UNIQUE, min_length=1, max_length=5
    )
    count: list[Annotated[int, Field(ge=1, le=256), WHOLE]] | None = Field(
        default=None, alias="batch.count", json_schema_extra=UNIQUE, min_length=1, max_length=32
    )


class NewStudy(Body):
    """A study to start; omitted fields are as in `tune --model M --vram B`."""

    model: str = Field(
        pattern=MODEL,
        description="`demo`, a Hugging Face id, or a folder below one that the service allows.",
        examples=["demo"],
    )
    vram: Size = Field(description="Budget of the device.", examples=["60MB"])
    ram: Size | None = Field(default=None, description="Budget of the host tier.")
    disk: Size | None = Field(default=None, description="Budget of expert packs.")
    name: str | None = Field(
        default=None,
        pattern=STUDY_NAME,
        description="Default: made of the model and the question, so that the same request "
        "continues the same study.",
    )
    device: str = Field(default="auto", pattern=DEVICE)
    trials: Annotated[int, Field(ge=1, le=10_000), WHOLE] = 24
    timeout_s: Duration = Field(
        default=DEFAULT_TIMEOUT_S,
        description="After it no trial starts; 0: never; `25m`, `1h30m` or seconds. Without it an "
        "hour, or as long as it takes if `trials` is given.",
        examples=["1h30m"],
    )
    objectives: list[ObjectiveName] = Field(
        default=["output_tps", "tpot_ms", "quality"],
        min_length=1,
        max_length=3,
        json_schema_extra=UNIQUE,
    )
    sampler: SamplerName = "auto"
    seed: Annotated[int, Field(ge=0, le=2**31 - 1), WHOLE] = 0
    min_quality: float | None = Field(default=None, gt=0, le=1)
    max_ttft_ms: Milliseconds | None = None
    max_tpot_ms: Milliseconds | None = None
    workload: Literal["chat", "code", "demo", "summary"] | None = Field(
        default=None, description="The text to run, in place of prompts; default: demo."
    )
    prompts: list[Prompt] | None = Field(default=None, min_length=1, max_length=1000)
    chat: bool | None = None
    prompt_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    sequences: Annotated[int, Field(ge=1, le=4096), WHOLE] | None = None
    tasks: list[Annotated[str, Field(pattern=TASK)]] = Field(
        default=[], max_length=20, description="lm-eval tasks by name; default: held-out text."
    )
    limit: Annotated[int, Field(ge=1, le=1_000_000), WHOLE] | None = Field(
        default=None, description="Items of each task."
    )
    space: SearchedSettings = SearchedSettings()

    @field_validator("objectives")
    @classmethod
    def _check_objectives(cls, value: list[ObjectiveName]) -> list[ObjectiveName]:
        if len(set(value)) != len(value):
            raise ValueError("name each objective once")
        return value
