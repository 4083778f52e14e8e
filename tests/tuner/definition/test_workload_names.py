"""The installed workloads: found by name, of the lengths that they state, fitted to a model."""

from dataclasses import replace
from pathlib import Path

import pytest

from engine.measure.workload import tokenize
from engine.model.tokenizer import load_tokenizer
from tests.fakes.fake_engine import facts_of
from tuner.definition.study import load_definition
from tuner.definition.workload import (
    describe_default,
    describe_workload,
    fit_workload,
    load_workload,
    needed_capacity,
    shorten_prompts,
    summarize_workload,
    workload_names,
)
from tuner.errors import DefinitionError
from tuner.folders import studies_folder

# Tokens of the demo model's tokenizer that prompts have, the workload's limits.
LENGTHS = {"chat": (100, 320), "code": (300, 1024), "summary": (2000, 3840)}


def test_the_installed_workloads_are_found():
    assert workload_names() == ("chat", "code", "demo", "summary")


@pytest.mark.parametrize("name", LENGTHS)
def test_prompts_are_as_long_as_stated(name: str):
    work = load_workload(name)
    tokenizer = load_tokenizer(studies_folder() / "demo" / "model", "demo", trust_remote_code=False)
    low, high = LENGTHS[name]
    lengths = [len(tokenizer(prompt)["input_ids"]) for prompt in work.prompts]
    assert (work.prompt_tokens, all(low <= length <= high for length in lengths)) == (high, True)
    assert (len(work.prompts) >= 8, len(set(work.prompts))) == (True, len(work.prompts))
    assert 128 <= work.output_tokens <= 256
    sequences = tokenize(work, tokenizer)
    assert len({one.prompt for one in sequences}) == len(work.prompts)


def test_a_request_for_a_summary_survives_cutting():
    asked = [prompt.rpartition("---")[2] for prompt in load_workload("summary").prompts]
    assert all(20 < len(text) < 400 for text in asked)


@pytest.mark.parametrize(("text", "nearest"), [("chta", "chat"), ("sumary", "summary")])
def test_an_unknown_name_is_answered_with_the_nearest(text: str, nearest: str):
    with pytest.raises(DefinitionError, match=f"no workload '{text}'; the nearest is '{nearest}'"):
        load_workload(text)


def test_a_missing_file_is_no_name(tmp_path: Path):
    with pytest.raises(DefinitionError, match=r"chta\.yaml cannot be read"):
        load_workload(tmp_path / "chta.yaml")


def test_a_definition_names_one_or_a_file_beside_it(tmp_path: Path):
    (tmp_path / "own").write_text("name: mine\nprompts: [a]\n")
    for name, found in (("chat", "chat"), ("own", str(tmp_path / "own"))):
        path = tmp_path / "study.yaml"
        path.write_text(f"model: m\nworkload: {name}\n")
        assert load_definition(path, {}).workload == found
    path.write_text("model: m\nworkload: sumary\n")
    with pytest.raises(DefinitionError, match="the nearest is 'summary'"):
        load_definition(path, {})


def test_a_model_without_a_template_gets_plain_text():
    facts = replace(facts_of("m"), has_chat_template=False)
    fitted = fit_workload(load_workload("chat"), facts)
    assert (fitted.workload.chat, len(fitted.notes)) == (False, 1)
    assert "has no chat template" in fitted.notes[0]
    kept = fit_workload(load_workload("chat"), facts, chat=True)  # which the engine refuses
    assert (kept.workload.chat, kept.notes) == (True, ())


def test_prompts_leave_room_for_the_answer():
    fitted = fit_workload(load_workload("summary"), facts_of("m"))
    assert fitted.workload.prompt_tokens == 2048 - 256
    assert fitted.notes == (
        "workload 'summary' has 3840 + 256 tokens, m takes 2048: of longer prompts the last 1792 "
        "tokens are used",
    )
    assert needed_capacity(fitted.workload, facts_of("m")) == 2048


def test_an_answer_without_room_is_left_alone():
    work = load_workload("chat", output_tokens=4096)
    assert shorten_prompts(work, 4096, "m").workload == work


def test_capacity_is_at_most_what_the_model_takes():
    small = replace(facts_of("m"), max_positions=512)
    assert needed_capacity(load_workload("demo"), small) == 512
    assert needed_capacity(load_workload("code"), facts_of("m")) == 1024 + 192


def test_what_figures_speak_for_is_one_line():
    line = describe_workload(load_workload("chat"))
    assert line == (
        "workload 'chat', 12 prompts of up to 320 tokens, with the chat template, 160 tokens out, "
        "4 sequences a repeat"
    )
    assert summarize_workload(load_workload("chat"))["prompts"] == 12
    default = describe_default()
    assert "documentation texts of 64 + 24 tokens" in default
    assert all(word in default for word in ("chat", "code", "summary", "--prompts"))
