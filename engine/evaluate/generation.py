"""What a task's `generation_kwargs` ask for, as the engine's own settings.

In: the mapping of one request, with lm-eval's names and their synonyms. Out: GenerationSettings.
What the engine cannot do is refused by its name; what asks for nothing is accepted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import TaskError
from engine.run.penalties import PenaltyOptions
from engine.run.sampling import SamplingOptions

DEFAULT_NEW_TOKENS = 256  # lm-eval's own
# The number of new tokens, by lm-eval's precedence.
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
# What the sampler can do, by lm-eval's names: a setting, its least and its greatest value.
SAMPLED: Mapping[str, tuple[float, float]] = {
    "top_p": (1e-6, 1),
    "top_k": (-1, 1 << 31),
    "min_p": (0, 1),
}
PENALTIES: Mapping[str, tuple[float, float]] = {
    "repetition_penalty": (0.01, 100),
    "presence_penalty": (-100, 100),
    "frequency_penalty": (-100, 100),
}
# Settings that choose among sampled tokens only, so that greedy decoding ignores them.
_OF_SAMPLING = frozenset(
    {"top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h"}
)
# Values with which a setting asks for nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "n": (1,),
    "best_of": (1,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "diversity_penalty": (0,),
    "penalty_alpha": (0,),
    "no_repeat_ngram_size": (0,),
    "repetition_penalty": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "min_new_tokens": (0,),
    "min_length": (0,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "use_cache": (True, False),  # the same tokens, faster or slower
    "stream": (False,),
    "skip_special_tokens": (True,),
}
_KNOWN = frozenset({"until", "do_sample", "temperature", *LENGTHS})


@dataclass(frozen=True)
class GenerationSettings:
    """until: the text ends before the first of these; new_tokens: at most so many; sampling: with
    seed 0, which each request replaces by its own."""

    until: tuple[str, ...]
    new_tokens: int
    sampling: SamplingOptions


def read_generation(given: Mapping[str, Any], task: str) -> GenerationSettings:
    """Reads the generation_kwargs of a task. Raises TaskError with the name of a setting that is
    not honoured or whose value cannot be read."""
    asked = {key: value for key, value in given.items() if value is not None}
    temperature = _temperature(asked, task)
    sampling: dict[str, Any] = {"temperature": temperature}
    penalties: dict[str, Any] = {}
    for name, value in asked.items():
        if name in _KNOWN or value in _NEUTRAL.get(name, ()):
            continue
        if temperature == 0 and name in _OF_SAMPLING:
            continue
        if name in SAMPLED:
            sampling[name] = _between(task, name, value, SAMPLED[name])
        elif name in PENALTIES:
            kind = name.removesuffix("_penalty")
            penalties[kind] = _between(task, name, value, PENALTIES[name])
        else:
            raise _refusal(
                task, name, value, f"is not honoured here (honoured: {', '.join(honoured())})"
            )
    if "top_k" in sampling:
        sampling["top_k"] = int(sampling["top_k"])
    options = SamplingOptions(**sampling, penalties=PenaltyOptions(**penalties))
    return GenerationSettings(_until(asked, task), _new_tokens(asked, task), options)


def honoured() -> tuple[str, ...]:
    """The settings that have an effect, by lm-eval's names."""
    return ("until", LENGTHS[0], "do_sample", "temperature", *SAMPLED, *PENALTIES)


def _temperature(asked: Mapping[str, Any], task: str) -> float:
    """0 is greedy. As lm-eval: sampling if do_sample says so, or by itself if it is above 0."""
    sample, given = asked.get("do_sample"), asked.get("temperature")
    if sample not in (None, True, False):
        raise _refusal(task, "do_sample", sample, "must be true or false")
    temperature = 0.0 if given is None else _number(task, "temperature", given)
    if temperature < 0:
        raise _refusal(task, "temperature", given, "must be 0 or more")
    if sample is False:
        return 0.0
    if sample and given is None:
        return 1.0  # as transformers samples
    if sample and temperature == 0:
        raise _refusal(task, "do_sample", True, "needs a temperature above 0")
    return temperature


def _new_tokens(asked: Mapping[str, Any], task: str) -> int:
    name = next((one for one in LENGTHS if one in asked), None)
    if name is None:
        return DEFAULT_NEW_TOKENS
    value = _number(task, name, asked[name])
    if value < 1 or value != int(value):
        raise _refusal(task, name, asked[name], "must be a whole number of 1 or more")
    return int(value)


def _until(asked: Mapping[str, Any], task: str) -> tuple[str, ...]:
    given = asked.get("until", ())
    stops = (given,) if isinstance(given, str) else given
    if not isinstance(stops, list | tuple) or not all(isinstance(one, str) for one in stops):
        raise _refusal(task, "until", given, "must be a text or a list of texts")
    return tuple(one for one in stops if one)


def _number(task: str, name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise _refusal(task, name, value, "must be a number") from None
    if isinstance(value, bool) or not math.isfinite(number):
        raise _refusal(task, name, value, "must be a number")
    return number


def _between(task: str, name: str, value: Any, bounds: tuple[float, float]) -> float:
    number = _number(task, name, value)
    if not bounds[0] <= number <= bounds[1]:
        raise _refusal(task, name, value, f"must be from {bounds[0]:g} to {bounds[1]:g}")
    return number


def _refusal(task: str, name: str, value: Any, why: str) -> TaskError:
    return TaskError(f"the task {task}: generation_kwargs.{name} = {value!r} {why}")
