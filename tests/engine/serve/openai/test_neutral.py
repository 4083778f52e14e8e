"""What clients always send: values that ask for nothing are taken, what asks is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from engine.serve.openai.neutral import ASSISTANT, CHAT, COMPLETION, AnyOf
from engine.serve.openai.requests import ChatRequest, CompletionRequest, TextPart

EXAMPLES = {"string": ["", "x"], "object": [{}, {"a": {"b": 1}}], "boolean": [True, False]}


def chat(*turns: dict[str, Any], **fields: Any) -> ChatRequest:
    messages = [{"role": "user", "content": "a"}, *turns]
    return ChatRequest.model_validate({"model": "m", "messages": messages, **fields})


def completion(**fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate({"model": "m", "prompt": "a", **fields})


def values_of(table: Any) -> list[tuple[str, Any]]:
    """Every field with null and with every value that the table accepts."""
    found: list[tuple[str, Any]] = []
    for name, accepted in table.items():
        found.append((name, None))
        for one in accepted:
            values = EXAMPLES[one.json_type] if isinstance(one, AnyOf) else [one]
            found += [(name, value) for value in values]
    return found


def test_every_value_of_the_tables_asks_for_nothing() -> None:
    for name, value in values_of(CHAT):
        assert chat(**{name: value}) == chat(), name
    for name, value in values_of(COMPLETION):
        assert completion(**{name: value}) == completion(), name
    for name, value in values_of(ASSISTANT):
        turn = {"role": "assistant", "content": "b"}
        assert chat({**turn, name: value}) == chat(turn), name


# vllm-project/vllm#10463 (clients break on extra fields), partITech/php-mistral#76 (`tools: []`)
@pytest.mark.parametrize("name", ["logit_bias", "response_format", "metadata", "store", "new_one"])
def test_a_null_asks_for_nothing_whatever_its_field(name: str) -> None:
    assert chat(**{name: None}) == chat()
    assert completion(**{name: None}) == completion()


def test_every_optional_field_of_a_request_may_be_null() -> None:
    for make, kind in ((chat, ChatRequest), (completion, CompletionRequest)):
        for name, field in kind.model_fields.items():
            if not field.is_required():
                default = {} if name != "model" else {"model": None}
                assert make(**{name: None}) == make().model_copy(update=default)
    assert chat(stream_options={"include_usage": None, "include_obfuscation": False})


@pytest.mark.parametrize(
    ("fields", "place", "says"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "send null or []"),
        ({"tool_choice": "required"}, "tool_choice", 'null or "none" or "auto"'),
        ({"response_format": {"type": "json_object"}}, "response_format", '{"type": "text"}'),
        ({"mm_processor_kwargs": {"a": 1}}, "mm_processor_kwargs", "null or {}"),
        ({"store": True}, "store", "null or false"),
        ({"store": 0}, "store", "null or false"),  # in JSON 0 is not false
        ({"metadata": []}, "metadata", "any object"),
        ({"modalities": ["text", "audio"]}, "modalities", '["text"]'),
        ({"audio": {}}, "audio", "send null"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls", "any boolean"),
        ({"priority": False}, "priority", "null or 0"),
    ],
)
def test_what_asks_for_something_is_refused_with_what_is_allowed(
    fields: dict[str, Any], place: str, says: str
) -> None:
    with pytest.raises(ValidationError) as raised:
        chat(**fields)
    (error,) = raised.value.errors()
    assert error["loc"] == (place,)
    assert "asks for something that this server does not do" in error["msg"]
    assert says in error["msg"]


def test_an_unknown_field_that_is_not_null_is_refused() -> None:
    with pytest.raises(ValidationError, match="extra_forbidden"):
        chat(new_one=False)
    with pytest.raises(ValidationError, match="extra_forbidden"):
        completion(tools=[])  # no field of this route
    with pytest.raises(ValidationError, match="extra_forbidden"):
        chat(stream_options={"new_one": 1})


def test_the_message_of_an_sdk_may_be_given_back() -> None:
    # razzant/ouroboros#33, github/copilot-sdk#2061: message.model_dump() of the first answer
    nulls = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "tool_calls"))
    dumped = {"role": "assistant", "content": "b", **nulls}
    assert chat(dumped) == chat({"role": "assistant", "content": "b"})
    lists = {**dumped, "annotations": [], "tool_calls": []}
    assert chat(lists) == chat(dumped)
    assert chat({"role": "assistant", "content": None}) == chat({"role": "assistant"})
    assert chat({"role": "user", "content": "c", "tool_calls": None, "name": None})


def test_parts_are_text_and_in_answers_also_refusals() -> None:
    parts = [{"type": "text", "text": "b", "refusal": None, "annotations": []}]
    refusal = {"type": "refusal", "refusal": "no"}
    turn = chat({"role": "assistant", "content": [*parts, refusal]}).messages[1]
    assert not isinstance(turn.content, str)
    assert [part.text for part in turn.content or ()] == ["b", "no"]
    assert chat({"role": "user", "content": parts}).messages[1].content == [
        TextPart(type="text", text="b")
    ]


@pytest.mark.parametrize(
    ("turn", "place", "says"),
    [
        ({"role": "tool", "content": "4", "tool_call_id": "x"}, (), "this server runs no tools"),
        ({"role": "function", "content": "4", "name": "f"}, (), "this server runs no tools"),
        ({"content": "4"}, (), "role must be system, developer, user or assistant"),
        ({"role": "assistant", "tool_calls": [{"id": "x"}]}, ("<assistant>", "tool_calls"), "[]"),
        ({"role": "assistant", "thoughts": "x"}, ("<assistant>", "thoughts"), "not permitted"),
        ({"role": "assistant", "reasoning": "x"}, ("<assistant>", "reasoning"), 'null or ""'),
        ({"role": "user", "content": None}, ("<other>", "content"), "required"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
         ("<other>", "content", "<parts>", 0, "type"), "'text'"),
        ({"role": "assistant", "content": [{"type": "audio"}]},
         ("<assistant>", "content", "<parts>", 0), "must be of type text"),
    ],
)  # fmt: skip
def test_a_turn_that_cannot_be_honoured_is_refused_where_it_stands(
    turn: dict[str, Any], place: tuple[Any, ...], says: str
) -> None:
    with pytest.raises(ValidationError) as raised:
        chat(turn)
    first = raised.value.errors()[0]
    assert first["loc"] == ("messages", 1, *place)
    assert says in first["msg"]


def test_best_of_is_one_or_as_many_as_are_sent() -> None:
    assert completion(best_of=1, n=3).n == completion(best_of=3, n=3).n == 3
    for fields in ({"best_of": 2}, {"best_of": 3, "n": 2}):
        with pytest.raises(ValidationError, match="no answers are made to be thrown away"):
            completion(**fields)


def test_the_schema_says_what_is_taken() -> None:
    schema = ChatRequest.model_json_schema()
    assert schema["additionalProperties"] == {"type": "null"}
    assert schema["properties"]["tools"]["anyOf"] == [{"type": "null"}, {"enum": [[]]}]
    assert schema["properties"]["user"]["anyOf"] == [{"type": "null"}, {"type": "string"}]
    assert schema["$defs"]["AnswerTurn"]["properties"]["tool_calls"]["anyOf"][1] == {"enum": [[]]}
