"""Fields that clients always send, at the values that ask for nothing.

SDKs send many fields of other servers that this one does not have. A null asks for
nothing, whatever its field; so do the values in these tables. A field of a table at another value
is refused with the values that are allowed; a field of no table is refused as unknown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError


@dataclass(frozen=True)
class AnyOf:
    """Every value of one JSON type: labels and hints that change no answer. of: its class here."""

    json_type: str
    of: type


TEXT, MAPPING, BOOLEAN = AnyOf("string", str), AnyOf("object", dict), AnyOf("boolean", bool)
Accepted = tuple[Any, ...]  # JSON values, and AnyOf; empty: only null
Table = Mapping[str, Accepted]

# Both routes. Labels: what a provider stores or routes by. Hints: what changes no answer.
GENERATION: Table = {
    # OpenAI
    "metadata": (MAPPING,),
    "prompt_cache_key": (TEXT,),
    "prompt_cache_retention": ("in_memory", "in-memory"),
    "safety_identifier": (TEXT,),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "user": (TEXT,),
    # vLLM
    "allowed_token_ids": (),
    "bad_words": ([],),
    "cache_salt": (),
    "early_stopping": (False,),
    "guided_choice": (),
    "guided_decoding_backend": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_stop_str_in_output": (False,),
    "kv_transfer_params": (),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "mm_processor_kwargs": ({},),
    "priority": (0,),
    "prompt_logprobs": (),
    "request_id": (TEXT,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],),
    "structured_outputs": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
    # llama.cpp
    "cache_prompt": (True,),
    "dry_allowed_length": (2,),
    "dry_base": (1.75,),
    "dry_multiplier": (0,),
    "dry_penalty_last_n": (-1, 0),
    "dynatemp_exponent": (1,),
    "dynatemp_range": (0,),
    "grammar": ("",),
    "id_slot": (-1,),
    "json_schema": (),
    "min_keep": (0,),
    "mirostat": (0,),
    "mirostat_eta": (0.1,),
    "mirostat_tau": (5,),
    "n_keep": (0,),
    "n_predict": (-1,),
    "n_probs": (0,),
    "repeat_last_n": (-1, 0, 64),
    "repeat_penalty": (1,),
    "timings_per_token": (False,),
    "typical_p": (1,),
    "xtc_probability": (0,),
    "xtc_threshold": (0.1,),
    # SGLang, text-generation-webui, OpenRouter, Mistral
    "no_stop_trim": (False,),
    "plugins": ([],),
    "provider": ({},),
    "return_hidden_states": (False,),
    "safe_prompt": (False,),
    "separate_reasoning": (True,),
    "stream_reasoning": (True,),
    "tfs_z": (1,),
    "top_a": (0,),
    "transforms": ([],),
}
COMPLETION: Table = {
    **GENERATION,
    "add_special_tokens": (True,),
    "echo": (False,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
}
CHAT: Table = {
    **GENERATION,
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "audio": (),
    "chat_template": (),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "include_reasoning": (True,),
    "modalities": (["text"],),
    "parallel_tool_calls": (BOOLEAN,),
    "prediction": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
# Other turns: clients give every turn the fields of all.
MESSAGE: Table = {"annotations": ([],), "tool_calls": ([],)}
# An assistant's turn as SDKs give it back: the dumped message of an earlier answer.
ASSISTANT: Table = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "prefix": (False,),
    "provider_specific_fields": (MAPPING,),
    "reasoning": ("",),
    "reasoning_content": ("",),
    "refusal": (),
    "tool_calls": ([],),
}
PART: Table = {"annotations": ([],), "cache_control": (MAPPING,), "refusal": ()}


def drop_neutral(sent: Any, table: Table) -> Any:
    """What was sent, without its nulls and the table's neutral values; no object stays as it is.

    Raises ValidationError for a field of the table that asks for something.
    """
    if not isinstance(sent, dict):
        return sent
    kept = {}
    for name, value in sent.items():
        if value is None:
            continue
        if name not in table:
            kept[name] = value
        elif not any(_matches(value, one) for one in table[name]):
            refuse(
                name,
                f"it asks for something that this server does not do; {_allowed(table[name])}",
            )
    return kept


def refuse(field: str, message: str) -> NoReturn:
    """Raise a ValidationError of one field of the object that is being validated."""
    problem = PydanticCustomError("refused", "{message}", {"message": message})
    error = InitErrorDetails(type=problem, loc=(field,), input=None)
    raise ValidationError.from_exception_data("request", [error])


def describe(schema: dict[str, Any], table: Table) -> None:
    """Add the table to the JSON schema of its object: its fields, and null for any other."""
    for name, accepted in table.items():
        branches: list[dict[str, Any]] = [{"type": "null"}]
        branches += [{"type": one.json_type} for one in accepted if isinstance(one, AnyOf)]
        if values := [one for one in accepted if not isinstance(one, AnyOf)]:
            branches.append({"enum": values})
        schema["properties"][name] = {"anyOf": branches, "description": "Asks for nothing."}
    schema["additionalProperties"] = {"type": "null"}


def _matches(value: Any, accepted: Any) -> bool:
    if isinstance(accepted, AnyOf):
        return isinstance(value, accepted.of)
    same_kind = isinstance(value, bool) == isinstance(accepted, bool)  # in JSON true is not 1
    return same_kind and bool(value == accepted)


def _allowed(accepted: Accepted) -> str:
    """For a message: what may be sent instead."""
    values = [json.dumps(one) for one in accepted if not isinstance(one, AnyOf)]
    values += [f"any {one.json_type}" for one in accepted if isinstance(one, AnyOf)]
    return "leave it out, or send " + " or ".join(["null", *values])
