"""Which text figures speak for: chosen by name, said where none was, stated in every report."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import fake_engine
from tests.fakes.study import BUDGET_BYTES
from tests.tuner.conftest import Tune
from tuner.deployment.document import load_deployment

BUDGET = ("--model", "m", "--vram", str(4 * BUDGET_BYTES))
SPEED = ("--objectives", "output_tps,tpot_ms", "--sampler", "random", "--trials", "1")
DEFAULT = "documentation texts of 64 + 24 tokens"


@pytest.mark.parametrize(
    "words", [(*BUDGET, *SPEED), ("plan", *BUDGET), ("bench", *BUDGET, "--repeats", "1")]
)
def test_who_chooses_no_text_is_told_what_figures_speak_for(tune: Tune, words: tuple[str, ...]):
    done = tune(*words)
    assert done.code == 0, done.err
    assert done.err.count(DEFAULT) == 1
    assert DEFAULT not in tune(*words, "--workload", "demo").err
    assert DEFAULT not in tune(*words, "--workload", "workload.yaml").err


@pytest.mark.parametrize("words", [(), ("plan",), ("bench",), ("trace",), ("profile",)])
def test_an_unknown_workload_is_answered_with_the_nearest(tune: Tune, words: tuple[str, ...]):
    done = tune(*words, *BUDGET, "--workload", "summery")
    assert (done.code, "the nearest is 'summary'" in done.err) == (2, True)
    assert "(there are: chat, code, demo, summary; or name a YAML file)" in done.err


@pytest.mark.parametrize("words", [(), ("plan",), ("bench",), ("trace",)])
def test_two_texts_are_one_too_many(tune: Tune, words: tuple[str, ...]):
    done = tune(*words, *BUDGET, "--workload", "chat", "--prompts", "p.txt")
    assert (done.code, "leave one out" in done.err) == (2, True)


def test_an_option_takes_the_place_of_the_definitions_prompts(tune: Tune, folder: Path):
    (folder / "p.txt").write_text("one\ntwo\n")
    text = (folder / "study.yaml").read_text().replace("workload: workload.yaml", "prompts: p.txt")
    (folder / "study.yaml").write_text(text)
    plan = tune("--definition", "study.yaml", "--dry-run", "--json").document["plan"]
    assert plan["workload"]["name"] == "p"
    plan = tune("--definition", "study.yaml", "--workload", "code", "--dry-run", "--json")
    assert plan.document["plan"]["workload"]["name"] == "code"


def test_a_study_of_a_named_workload_says_so_in_every_report(tune: Tune, folder: Path):
    done = tune(*BUDGET, *SPEED, "--workload", "chat", "-o", "out.yaml")
    assert done.code == 0, done.err
    text = "workload 'chat', 12 prompts of up to 320 tokens, with the chat template, 160 tokens out"
    assert f"figures speak for {text}" in done.out
    assert text in tune("show", "m").out
    assert tune("show", "m", "--json").document["study"]["workload"] == {
        "name": "chat", "prompts": 12, "chat": True, "prompt_tokens": 320, "output_tokens": 160,
        "sequences": 4,
    }  # fmt: skip
    deployed = load_deployment(folder / "out.yaml")
    assert (deployed.workload.name, len(deployed.workload.prompts)) == ("chat", 12)
    exported = tune("export", "m", "--format", "llama.cpp").out
    assert "workload 'chat', 12 prompts" in exported


def test_the_plan_has_the_memory_of_the_workload(tune: Tune):
    usual = tune("plan", *BUDGET, "--json").document
    summary = tune("plan", *BUDGET, "--workload", "summary", "--json")
    assert "of longer prompts the last 1792 tokens are used" in summary.err
    found = summary.document
    assert (usual["kv_max_tokens"], found["kv_max_tokens"]) == (1024, 2048)
    assert found["workload"]["prompt_tokens"] == 1792
    kept = {row["bits"]: row["kv_bytes"] for row in usual["rows"] if row["fits"]}
    assert all(r["kv_bytes"] == 2 * kept[r["bits"]] for r in found["rows"] if r["fits"])


def test_a_study_shortens_what_the_model_does_not_take(tune: Tune, folder: Path):
    words = (*BUDGET, *SPEED, "--workload", "summary", "-o", "out.yaml")
    done = tune(*words)
    assert done.code == 0, done.err
    assert done.err.count("of longer prompts the last 1792 tokens are used") == 1
    deployed = load_deployment(folder / "out.yaml")
    assert deployed.workload.prompt_tokens == 1792
    assert deployed.config().kv.max_tokens == 2048
    assert tune(*words, "--resume").code == 0


def test_an_answer_that_no_prompt_fits_beside_is_refused(tune: Tune, folder: Path):
    (folder / "long.yaml").write_text("name: long\nprompts: [a]\noutput_tokens: 5000\n")
    done = tune(*BUDGET, *SPEED, "--workload", "long.yaml")
    assert (done.code, "lower output_tokens" in done.err) == (2, True)


def test_what_does_not_fit_names_the_length_of_sequences(tune: Tune):
    done = tune("--model", "m", "--vram", "1MB", *SPEED, "--workload", "summary")
    assert (done.code, "(sequences have 2048 tokens: kv.max_tokens)" in done.err) == (3, True)


def test_a_model_without_a_chat_template_is_run_on_plain_text(
    tune: Tune, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    plain = fake_engine.facts_of

    def without(*arguments: Any) -> Any:
        return replace(plain(*arguments), has_chat_template=False)

    monkeypatch.setattr(fake_engine, "facts_of", without)
    done = tune(*BUDGET, *SPEED, "--workload", "chat", "-o", "out.yaml")
    assert done.code == 0, done.err
    assert "m has no chat template: prompts are run as plain text" in done.err
    assert load_deployment(folder / "out.yaml").workload.chat is False


def test_bench_cuts_a_workload_to_what_a_file_holds(study: Path, tune: Tune):
    done = tune("bench", "expertune-small.yaml", "--workload", "summary", "--repeats", "1")
    assert done.code == 0, done.err
    assert "expertune-small.yaml takes 1024: of longer prompts the last 768 tokens" in done.err
    assert "measured with workload 'summary', 10 prompts of up to 768 tokens" in done.out
