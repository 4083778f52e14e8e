"""The inputs of a measurement and of an evaluation: Workload, TaskOptions, TaskNeed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Workload:
    """Real text to run: see studies/workloads/.

    prompts: raw texts or (chat) user messages; continuations: the texts that follow them, for
    teacher forcing (empty: seeded sampling). sequences: number of sequences in one repeat.
    """

    name: str
    prompts: tuple[str, ...]
    continuations: tuple[str, ...] = ()
    chat: bool = False
    prompt_tokens: int = 64
    output_tokens: int = 32
    sequences: int = 4

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Workload:
        """Inverse of to_json."""
        return cls(
            **{
                **data,
                "prompts": tuple(data["prompts"]),
                "continuations": tuple(data["continuations"]),
            }
        )


@dataclass(frozen=True)
class TaskOptions:
    """How lm-eval runs its tasks; the names are lm-eval's own.

    limit: items of each task, None: all; num_fewshot: examples before each item, None: as the task
    says (a task that says 0 stays at 0); apply_chat_template: use the model's own;
    fewshot_as_multiturn: with a template, each example is a turn. seed: also selects the few-shot
    examples.
    """

    limit: int | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = True
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """The arguments of `evaluate`."""
        return asdict(self)


@dataclass(frozen=True)
class TaskNeed:
    """The most tokens that one task asks of a model at once, 0 if it does not ask that.

    prompt_tokens, new_tokens: of the request to generate with the largest sum; scored_tokens: of
    the longest context with its continuation; target_tokens: of the longest continuation alone.
    Whole texts need no capacity, since they are scored in windows.
    """

    task: str
    prompt_tokens: int = 0
    new_tokens: int = 0
    scored_tokens: int = 0
    target_tokens: int = 0

    @property
    def generated_tokens(self) -> int:
        """What a prompt and its answer need together."""
        return self.prompt_tokens + self.new_tokens

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TaskNeed:
        """Inverse of to_json."""
        return cls(**data)
