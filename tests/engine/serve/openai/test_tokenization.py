"""From requests to sequences: templates, token ids, room, sampling."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from engine.run.generate import SamplingDefaults
from engine.run.penalties import PenaltyOptions
from engine.serve.openai.errors import ApiError
from engine.serve.openai.requests import ChatRequest, CompletionRequest
from engine.serve.openai.tokenization import PromptReader, ServedModel

SERVED = ServedModel("tiny", max_model_len=32, vocabulary=300, created=1)
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('no answers') }}"
    "{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}off{% endif %}"
)


@pytest.fixture
def reader(tokenizer: Any) -> PromptReader:
    return PromptReader(SERVED, copy.deepcopy(tokenizer))


@pytest.fixture
def templated(tokenizer: Any) -> PromptReader:
    own = copy.deepcopy(tokenizer)
    own.chat_template = TEMPLATE
    return PromptReader(SERVED, own)


def completion(**fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate({"model": "tiny", "prompt": "a", **fields})


def chat(content: Any = "a", role: str = "user", **fields: Any) -> ChatRequest:
    messages = [{"role": role, "content": content}]
    return ChatRequest.model_validate({"model": "tiny", "messages": messages, **fields})


def test_the_models_own_template_and_its_thinking_switch_are_used(
    templated: PromptReader, tokenizer: Any
) -> None:
    def text(request: ChatRequest) -> str:
        return str(tokenizer.decode(templated.chat(request)[0].prompt))

    assert text(chat("a")) == "user: a\n"
    assert text(chat("a", chat_template_kwargs={"enable_thinking": True})) == "user: a\n"
    assert text(chat("a", chat_template_kwargs={"enable_thinking": False})) == "user: a\noff"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert text(chat(parts, role="developer")) == "system: ab\n"


def test_a_template_that_refuses_is_the_clients_error(
    templated: PromptReader, tokenizer: Any
) -> None:
    with pytest.raises(ApiError, match="refuses this: no answers") as raised:
        templated.chat(chat("a", role="assistant"))
    assert raised.value.status == 400
    tokenizer = copy.deepcopy(tokenizer)
    for source in ("{{ 1 // x }}", "{{ messages[9].content }}", "{{ 'a'.encode(x) }}"):
        tokenizer.chat_template = source
        with pytest.raises(ApiError, match="refuses this"):
            PromptReader(SERVED, tokenizer).chat(chat(chat_template_kwargs={"x": 0}))
    tokenizer.chat_template = None
    with pytest.raises(ApiError, match="no chat template: use /v1/completions"):
        PromptReader(SERVED, tokenizer).chat(chat())


def test_a_text_that_the_tokenizer_cannot_read_is_no_fault_of_the_server(tokenizer: Any) -> None:
    own = copy.deepcopy(tokenizer)
    own.chat_template = "{{ '\\ud800' }}"
    with pytest.raises(ApiError, match="tokenizer cannot read this text") as raised:
        PromptReader(SERVED, own).chat(chat())
    assert raised.value.status == 400


@pytest.mark.parametrize("name", ["tokenize", "chat_template", "messages", "tools"])
def test_template_variables_cannot_take_over_the_template(name: str) -> None:
    with pytest.raises(ValidationError, match="cannot be set by a client"):
        chat(chat_template_kwargs={name: "x"})


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", [["ab"]]),
        ("", [["<s>"]]),
        (["ab", "b"], [["ab"], ["b"]]),
    ],
)
def test_texts_become_ids_and_an_empty_one_the_token_that_begins_a_text(
    reader: PromptReader, tokenizer: Any, prompt: Any, expected: list[list[str]]
) -> None:
    found = reader.completion(completion(prompt=prompt))
    assert [[tokenizer.decode(one.prompt)] for one in found] == expected


def test_token_ids_are_taken_as_they_are_if_the_model_has_them(reader: PromptReader) -> None:
    assert reader.completion(completion(prompt=[5, 6]))[0].prompt == (5, 6)
    found = reader.completion(completion(prompt=[[5, 6], [7]]))
    assert [one.prompt for one in found] == [(5, 6), (7,)]
    with pytest.raises(ApiError, match="lies below 300"):
        reader.completion(completion(prompt=[[5], [300]]))


def test_what_is_beyond_the_room_is_refused_with_openais_code(reader: PromptReader) -> None:
    for request in (
        completion(prompt=[5] * 32),
        completion(prompt=[5], max_tokens=33),
    ):
        with pytest.raises(
            ApiError, match=r"capacity of 32 tokens .* \(kv\.max_tokens\)"
        ) as raised:
            reader.completion(request)
        assert raised.value.status == 400
        assert raised.value.problem.code == "context_length_exceeded"


class _Letters:
    """A tokenizer of single characters that counts them."""

    bos_token_id = eos_token_id = 0
    chat_template = "{{ messages[0].content }}"
    special_tokens_map: ClassVar[dict[str, str]] = {}
    apply_chat_template = PreTrainedTokenizerBase.apply_chat_template
    characters = 0

    def get_chat_template(self) -> str:
        return self.chat_template

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        self.characters += len(text)
        return {"input_ids": [1] * len(text)}


@pytest.mark.parametrize("kind", ["completion", "chat"])
def test_no_more_of_a_prompt_is_tokenized_than_the_context_takes(kind: str) -> None:
    # 7 MB took 30 s before they were refused, and all other requests waited
    letters, long = _Letters(), "a" * 7_000_000
    reader = PromptReader(SERVED, letters)
    with pytest.raises(ApiError, match=r"the prompt has at least \d+ tokens"):
        reader.chat(chat(long)) if kind == "chat" else reader.completion(completion(prompt=long))
    assert letters.characters < 2000


@pytest.mark.parametrize(
    "fields",
    [{"prompt": [[5.5]] * 9}, {"prompt": [{}] * 9}, {"prompt": [5] * 9 + ["x"] * 9},
     {"prompt": "a", "stop": [{}] * 4}],
)  # fmt: skip
def test_the_first_error_of_a_list_ends_its_reading(fields: dict[str, Any]) -> None:
    # eight megabytes of them took seconds and gigabytes
    with pytest.raises(ValidationError) as raised:
        completion(**fields)
    assert raised.value.error_count() <= 4  # one for each type that a prompt may have
    with pytest.raises(ValidationError) as raised:
        ChatRequest.model_validate({"messages": [{}] * 9})
    assert raised.value.error_count() == 1


def test_an_answer_gets_the_room_that_the_prompt_leaves(reader: PromptReader) -> None:
    assert reader.completion(completion(prompt=[5] * 4))[0].max_tokens == 16
    assert reader.completion(completion(prompt=[5] * 31))[0].max_tokens == 1
    assert reader.completion(completion(prompt=[5] * 4, max_tokens=32))[0].max_tokens == 28
    (one,) = reader.chat(chat("a"))
    assert one.max_tokens == 32 - len(one.prompt)
    assert reader.chat(chat("a", max_tokens=9, max_completion_tokens=3))[0].max_tokens == 3


def test_choices_have_seeds_of_their_own(reader: PromptReader) -> None:
    found = reader.completion(completion(prompt=["a", "b"], n=2, seed=5))
    assert [one.sampling.seed for one in found] == [5, 6, 5, 6]
    large = reader.completion(completion(seed=10.0**30))[0].sampling.seed
    assert 0 <= large < 2**63
    unseeded = {reader.completion(completion())[0].sampling.seed for _ in range(5)}
    assert len(unseeded) == 5


def test_sampling_and_stop_are_openais(reader: PromptReader) -> None:
    plain = reader.completion(completion())[0]
    assert (plain.sampling.temperature, plain.sampling.top_p, plain.stop) == (1.0, 1.0, ())
    found = reader.completion(completion(stop="x", top_p=0, temperature=0, logprobs=2))[0]
    assert 0 < found.sampling.top_p < 1e-3
    assert (found.sampling.temperature, found.stop, found.logprobs) == (0, ("x",), 2)
    assert reader.chat(chat())[0].logprobs is None
    assert reader.chat(chat(top_logprobs=0))[0].logprobs is None
    assert reader.chat(chat(logprobs=True))[0].logprobs == 0
    assert reader.chat(chat(logprobs=True, top_logprobs=4))[0].logprobs == 4


def test_what_turns_sampling_off_is_off_and_the_rest_goes_through(reader: PromptReader) -> None:
    plain = reader.completion(completion(seed=1))[0].sampling
    neutral = {"top_k": -1, "min_p": 0, "repetition_penalty": 1, "frequency_penalty": None}
    assert reader.completion(completion(seed=1, **neutral))[0].sampling == plain
    asked = {"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.1, "frequency_penalty": 0.5}
    found = reader.completion(completion(**asked, presence_penalty=-0.5))[0].sampling
    assert (found.top_k, found.min_p) == (3, 0.1)
    assert found.penalties == PenaltyOptions(1.1, 0.5, -0.5)


def test_a_bias_names_tokens_that_the_model_has(reader: PromptReader) -> None:
    found = reader.completion(completion(logit_bias={"5": -100, "299": 0.5}))[0].sampling
    assert found.penalties.bias == ((5, -100.0), (299, 0.5))
    assert reader.completion(completion(seed=1, logit_bias={}))[0].sampling.penalties.bias == ()
    with pytest.raises(ApiError, match="lies below 300") as raised:
        reader.chat(chat(logit_bias={"300": 1}))
    assert raised.value.problem.param == "logit_bias"


def test_the_least_number_of_tokens_must_have_room(reader: PromptReader) -> None:
    # as AIPerf and guidellm send them
    found = reader.completion(completion(ignore_eos=True, min_tokens=8, max_tokens=8))[0]
    assert (found.ignore_eos, found.min_tokens, found.max_tokens) == (True, 8, 8)
    with pytest.raises(ApiError, match="min_tokens is 17, but the answer ends at max_tokens = 16"):
        reader.completion(completion(min_tokens=17))
    with pytest.raises(ApiError, match="min_tokens is 9, but the answer ends at max_tokens = 8"):
        reader.chat(chat(min_tokens=9, max_tokens=8))
    with pytest.raises(ApiError, match="leaves 2; this server has a capacity of 32") as raised:
        reader.completion(completion(prompt=[5] * 30, min_tokens=3))
    assert raised.value.problem.code == "context_length_exceeded"


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"max_tokens": "5"},
        {"max_tokens": 0},
        {"temperature": 3},
        {"temperature": float("nan")},
        {"frequency_penalty": 2.5},
        {"presence_penalty": -2.5},
        {"repetition_penalty": 0},
        {"top_k": -2},
        {"min_p": 1.5},
        {"logit_bias": {"5": 101}},
        {"logit_bias": {"x": 1}},
        {"logit_bias": {"-1": 1}},
        {"min_tokens": -1},
        {"ignore_eos": 1},
        {"stop": ["a"] * 5},
        {"stop": ["a", ""]},
        {"stop": "a" * 257},
        {"n": 9},
        {"seed": 1.5},
        {"prompt": []},
        {"prompt": ["a"] * 9},
    ],
)
def test_what_is_not_known_or_out_of_range_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        completion(**fields)


CHECKPOINT = SamplingDefaults(temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.1)


def test_a_request_that_names_no_sampling_gets_the_checkpoints(tokenizer: Any) -> None:
    reader = PromptReader(SERVED, tokenizer, CHECKPOINT)
    own = reader.completion(completion(seed=1))[0].sampling
    assert (own.temperature, own.top_p, own.top_k, own.min_p) == (0.6, 0.9, 20, 0.0)
    assert own.penalties == PenaltyOptions(repetition=1.1)
    named = completion(temperature=0, top_p=1, top_k=-1, min_p=0.1, repetition_penalty=1)
    asked = reader.completion(named)[0].sampling
    assert (asked.temperature, asked.top_p, asked.top_k, asked.min_p) == (0.0, 1.0, 0, 0.1)
    assert asked.penalties == PenaltyOptions()


@pytest.mark.parametrize(
    "fields", [{}, {"temperature": None, "top_p": None, "top_k": None, "repetition_penalty": None}]
)
def test_without_the_checkpoints_values_nothing_is_cut(
    reader: PromptReader, fields: dict[str, Any]
) -> None:
    own = reader.completion(completion(**fields))[0].sampling
    assert (own.temperature, own.top_p, own.top_k, own.min_p) == (1.0, 1.0, 0, 0.0)
    assert own.penalties == PenaltyOptions()


def test_values_that_ask_for_nothing_are_taken_of_fields_that_are_read(
    reader: PromptReader, templated: PromptReader
) -> None:
    plain = reader.completion(completion(stop="", logprobs=False, max_tokens=-1))[0]
    assert (plain.stop, plain.logprobs) == ((), None)
    assert plain.max_tokens == SERVED.max_model_len - len(plain.prompt)
    assert templated.chat(chat(max_tokens=-1))[0].max_tokens == templated.chat(chat())[0].max_tokens
    for zero in (0, -2):
        with pytest.raises(ValidationError):
            completion(max_tokens=zero)


def test_a_request_without_a_model_means_the_one_that_is_served(reader: PromptReader) -> None:
    request = CompletionRequest.model_validate({"prompt": "a"})
    assert reader.completion(request)
