"""A study through the command, on the fake engine: to its end, interrupted, resumed, failing."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from engine.facts.machine import probe
from tests.fakes.study import BUDGET_BYTES
from tests.tuner.conftest import Tune
from tuner.cli import options
from tuner.deployment.document import load_deployment
from tuner.engine_client.session import EngineSession
from tuner.study.optuna_storage import DEADLINE

# Where it does not matter which trials are run: nothing is predicted before the first.
RANDOM = ("--definition", "study.yaml", "--sampler", "random")


@pytest.mark.usefixtures("processes")
def test_a_study_runs_from_nothing_to_an_exported_config(tune: Tune, folder: Path):
    done = tune("--definition", "study.yaml", "--json")
    assert done.code == 0, done.err
    document = done.document
    assert [trial["number"] for trial in document["trials"]] == list(range(6))
    assert document["study"]["state"] == "FINISHED"
    assert document["recommended"] in [trial["number"] for trial in document["front"]]
    deployment = load_deployment(folder / "expertune-small.yaml")
    assert deployment.provenance.trial == document["recommended"]
    assert "trial 5" in done.err


def test_people_get_a_table_and_where_the_config_is(tune: Tune):
    done = tune(*RANDOM, "--output", "best.yaml")
    assert done.code == 0, done.err
    assert "Pareto front" in done.out
    assert "written to best.yaml" in done.out


def test_trial_0_is_the_default_config(tune: Tune):
    first = tune("--definition", "study.yaml", "--trials", "1", "--json").document["trials"][0]
    assert first["params"] == {
        "cache.expert_bytes": "auto", "prefetch.depth": 0, "precision.bits": 16, "batch.count": 1,
    }  # fmt: skip
    assert first["scores"]["quality"] == 1.0


def test_each_trial_is_measured_within_its_repeats(tune: Tune):
    done = tune(*RANDOM, "--json")
    for trial in done.document["trials"]:
        if trial["state"] == "COMPLETE":
            assert trial["metrics"]["output_tps"]["n"] >= 2
            assert trial["sentinel"] == {"compute_ms": 2.0, "read_ms": 1.0}


def test_the_same_command_continues_and_repeats_nothing(tune: Tune):
    first = tune("--definition", "study.yaml", "--trials", "4", "--json").document["trials"]
    again = tune("--definition", "study.yaml", "--trials", "6", "--json").document["trials"]
    assert [t["started"] for t in again[:4]] == [t["started"] for t in first]
    assert len(again) == 6
    idle = tune("--definition", "study.yaml", "--trials", "6", "--json")
    assert idle.document["trials"] == again


def test_another_budget_without_a_name_is_another_study(tune: Tune, folder: Path):
    text = (folder / "study.yaml").read_text().replace("name: small\n", "")
    (folder / "study.yaml").write_text(text)
    tune(*RANDOM, "--trials", "1")
    done = tune(*RANDOM, "--trials", "1", "--vram", str(BUDGET_BYTES + 1), "--json")
    assert done.document["study"]["name"] == "some-moe-2"


def test_a_resumed_study_asks_for_its_revision(tune: Tune, monkeypatch: pytest.MonkeyPatch):
    asked: list[str | None] = []
    plain = options.open_session

    def spy(*arguments: Any, revision: str | None = None, **named: Any) -> EngineSession:
        asked.append(revision)
        return plain(*arguments, revision=revision, **named)

    monkeypatch.setattr(options, "open_session", spy)
    words = (*RANDOM, "--json", "--trials")
    tune(*words, "1")
    tune(*words, "2", "--resume")
    assert asked == [None, load_deployment(Path("expertune-small.yaml")).model.revision]


def test_resume_needs_a_study_to_continue(tune: Tune):
    done = tune("--definition", "study.yaml", "--resume")
    assert (done.code, "there is no study 'small'" in done.err) == (2, True)


def test_a_name_of_another_model_is_refused(tune: Tune):
    tune(*RANDOM, "--trials", "1")
    done = tune(*RANDOM, "--model", "other-moe", "--trials", "1")
    assert done.code == 1
    assert "is of another model (some-moe)" in done.err


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2", "random", "grid"])
def test_every_sampler_runs(tune: Tune, sampler: str):
    done = tune("--definition", "study.yaml", "--sampler", sampler, "--trials", "6", "--json")
    assert done.code == 0, done.err
    assert done.document["study"]["trials"] == 6
    assert "at random" not in done.err


def test_a_small_grid_ends_when_every_point_was_measured(tune: Tune, folder: Path):
    with (folder / "study.yaml").open("a") as file:
        file.write("engine: {prefetch.depth: 0, batch.count: 1, cache.expert_bytes: auto}\n")
    done = tune("--definition", "study.yaml", "--trials", "50", "--sampler", "grid", "--json")
    assert done.code == 0, done.err
    assert done.document["study"]["trials"] <= 5


def test_what_does_not_fit_is_infeasible_and_optuna_learns_from_it(tune: Tune, folder: Path):
    with (folder / "study.yaml").open("a") as file:
        file.write("space: {cache.expert_bytes: ['100%', '75%']}\n")
    done = tune("--definition", "study.yaml", "--trials", "12", "--sampler", "tpe", "--json")
    assert done.code == 0, done.err
    infeasible = [t for t in done.document["trials"] if t["state"] == "INFEASIBLE"]
    assert infeasible
    for trial in infeasible:
        assert trial["failure"] == "does_not_fit"
        assert "the budget is" in trial["reason"]
    url = f"sqlite:///{folder / 'data' / 'expertune' / 'expertune.db'}"
    memory = optuna.load_study(study_name="small", storage=url)
    told = {t.number: t for t in memory.trials}
    for trial in infeasible:
        assert told[trial["number"]].state is TrialState.PRUNED
        assert told[trial["number"]].constraints["memory"] > 0
    assert set(told[0].constraints) == {"memory", "quality", "ttft", "tpot"}


def test_limits_keep_configs_off_the_front(tune: Tune):
    done = tune(
        "--definition",
        "study.yaml",
        "--min-quality",
        "0.9",
        "--trials",
        "8",
        "--sampler",
        "random",
        "--json",
    )
    assert done.code == 0, done.err
    outside = [t for t in done.document["trials"] if t["violations"].get("quality", 0) > 0]
    assert outside
    assert all(t["state"] == "COMPLETE" and not t["feasible"] for t in outside)
    assert all(t["scores"]["quality"] >= 0.9 for t in done.document["front"])


def test_a_task_that_does_not_exist_stops_a_study_before_it_begins(tune: Tune):
    done = tune("--definition", "study.yaml", "--tasks", "lambada,unknown_task")
    assert done.code == 2
    assert "lm-eval knows no task 'unknown_task'" in done.err
    assert "there is no database" in tune("studies", "--json").out


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--tasks", "unknown_task"), "lm-eval knows no task 'unknown_task'"),
        (("--min-quality", "98"), "less than or equal to 1"),
        (
            ("--min-quality", "0.9", "--objectives", "output_tps"),
            "min_quality limits what no trial evaluates: add quality to the objectives",
        ),
    ],
)
def test_a_dry_run_refuses_what_the_study_would(
    tune: Tune, dry: tuple[str, ...], words: tuple[str, ...], says: str
):
    done = tune(*RANDOM, "--trials", "1", *words, *dry)
    assert done.code == 2
    assert says in done.err


def test_a_study_makes_room_for_its_tasks_and_says_so(tune: Tune, folder: Path):
    # EleutherAI/lm-evaluation-harness#4001: max_gen_toks of a task larger than the model's room
    done = tune(*RANDOM, "--trials", "1", "--tasks", "room_1500", "--json")
    assert done.code == 0, done.err
    assert "kv.max_tokens is 1500 instead of 1024, as these tasks need" in done.err
    assert [t["config"]["kv"]["max_tokens"] for t in done.document["trials"]] == [1500]
    study = (folder / "study.yaml").read_text().replace("name: small\n", "")
    (folder / "study.yaml").write_text(study)
    for more in ((), ("--resume",)):  # a study that is found by what it asks, not by its name
        again = tune(*RANDOM, "--trials", "1", "--tasks", "room_1500", *more, "--json")
        assert again.code == 0, again.err
        assert again.document["study"]["name"] == "some-moe"


def test_a_study_ends_when_16_bits_are_at_the_level_of_guessing(tune: Tune):
    done = tune(*RANDOM, "--trials", "5", "--tasks", "guessed_task")
    assert done.code == 1
    assert "no metric above chance at 16 bits" in done.err
    states = [one["state"] for one in tune("show", "small", "--json").document["trials"]]
    assert states == ["INTERRUPTED"]  # not five that were measured for nothing


def test_a_study_ends_when_a_task_cannot_score_what_16_bits_answered(tune: Tune, misbehave):
    misbehave(("broken", "evaluate", 1))
    done = tune(*RANDOM, "--trials", "5")
    assert done.code == 1
    assert "utils.py, function f, line 2, raised" in done.err
    states = [one["state"] for one in tune("show", "small", "--json").document["trials"]]
    assert states == ["INTERRUPTED"]


def test_a_task_that_exceeds_a_fixed_room_is_refused(tune: Tune, folder: Path):
    with (folder / "study.yaml").open("a") as file:
        file.write("engine: {kv.max_tokens: 256}\n")
    done = tune(*RANDOM, "--trials", "1", "--tasks", "room_300")
    assert done.code == 2
    assert "the task room_300 needs 300 tokens, a prompt of 150 and 150 new ones" in done.err
    assert "kv.max_tokens is 256: set `engine: {kv.max_tokens: 300}`" in done.err


def test_a_study_of_an_earlier_release_continues(tune: Tune, folder: Path):
    assert tune(*RANDOM, "--trials", "2").code == 0
    store = folder / "data" / "expertune" / "expertune.db"
    with contextlib.closing(sqlite3.connect(store)) as connection, connection:
        rows = connection.execute("SELECT id, config FROM configuration").fetchall()
        for number, text in rows:
            config = json.loads(text)
            del config["kv"]["keep_fraction"]
            connection.execute(
                "UPDATE configuration SET config = ? WHERE id = ?", (json.dumps(config), number)
            )
    assert rows
    done = tune(*RANDOM, "--json")
    assert done.code == 0, done.err
    assert load_deployment(folder / "expertune-small.yaml").config().kv.keep_fraction == 1


def test_speed_alone_needs_no_tasks(tune: Tune):
    done = tune(*RANDOM, "--objectives", "output_tps,tpot_ms", "--json")
    assert done.code == 0, done.err
    assert all("quality" not in t["scores"] for t in done.document["trials"])


def test_quality_is_evaluated_once_for_each_precision(tune: Tune, misbehave, folder: Path):
    misbehave()
    done = tune(*RANDOM, "--trials", "12", "--json")
    bits = {t["params"]["precision.bits"] for t in done.document["trials"] if t["scores"]}
    assert json.loads((folder / "counts.json").read_text())["evaluate"] == len(bits | {16})


@pytest.mark.parametrize(
    ("fault", "state", "failure"),
    [
        (("crash", "measure", 3), "FAILED", "crash"),
        (("kill", "measure", 3), "INFEASIBLE", "out_of_memory"),
        (("error", "measure", 3), "INFEASIBLE", "out_of_memory"),
        (("bad_output", "measure", 3), "FAILED", "bad_output"),
        (("garbage", "measure", 3), "FAILED", "bad_output"),
        (("crash", "configure", 7), "FAILED", "crash"),
        (("full", "configure", 7), "FAILED", "storage"),
    ],
)
def test_a_failure_has_its_class_and_the_study_goes_on(
    tune: Tune,
    misbehave,
    request: pytest.FixtureRequest,
    fault: tuple[str, str, int],
    state: str,
    failure: str,
):
    if fault[1] == "measure" and fault[0] in ("crash", "kill", "garbage"):
        request.getfixturevalue("processes")
    misbehave(fault)
    done = tune(*RANDOM, "--trials", "6", "--json")
    assert done.code == 0, done.err
    trials = done.document["trials"]
    assert len(trials) == 6
    bad = [t for t in trials if t["failure"] == failure and t["state"] == state]
    ran = [t for t in bad if not t["reason"].startswith("as trial ")]  # a duplicate does not run
    assert len(ran) == 1
    assert trials[-1]["state"] == "COMPLETE"


@pytest.mark.parametrize(
    ("fault", "failure", "says"),
    [
        ("task", "task", "the data of a_task cannot be reached: go online"),
        ("nan", "bad_output", "the logits became NaN on 1 of 5 texts"),
    ],
)
def test_an_evaluation_that_fails_has_its_class_and_the_study_goes_on(
    tune: Tune, misbehave, fault: str, failure: str, says: str
):
    misbehave((fault, "evaluate", 2))  # the first is the reference's
    done = tune(*RANDOM, "--trials", "6", "--json")
    assert done.code == 0, done.err
    trials = done.document["trials"]
    bad = [t for t in trials if t["state"] == "FAILED"]
    assert [t["failure"] for t in bad] == [failure]
    assert says in bad[0]["reason"]
    assert trials[-1]["state"] == "COMPLETE"


def test_a_reference_whose_data_comes_back_fails_one_trial(tune: Tune, misbehave):
    misbehave(("task", "evaluate", 1))
    done = tune(*RANDOM, "--trials", "3", "--json")
    assert done.code == 0, done.err
    first, *others = done.document["trials"]
    assert (first["state"], first["failure"]) == ("FAILED", "task")
    assert "the 16-bit reference of a_task cannot be evaluated" in first["reason"]
    assert {trial["state"] for trial in others} == {"COMPLETE"}


def test_a_reference_of_nan_fails_every_trial_and_is_asked_once(
    tune: Tune, misbehave, folder: Path
):
    misbehave(("nan", "evaluate", 1))
    done = tune(*RANDOM, "--trials", "3")
    assert done.code == 1
    assert json.loads((folder / "counts.json").read_text())["evaluate"] == 1
    trials = tune("show", "small", "--json").document["trials"]
    assert [(t["state"], t["failure"]) for t in trials] == [("FAILED", "bad_output")] * 3


@pytest.mark.usefixtures("processes")
def test_a_reference_whose_engine_is_killed_is_tried_again(tune: Tune, misbehave, folder: Path):
    misbehave(("kill", "evaluate", 1), ("kill", "evaluate", 2), ("kill", "evaluate", 3))
    done = tune(*RANDOM, "--trials", "3", "--json")
    assert done.code == 0, done.err
    states = [trial["state"] for trial in done.document["trials"]]
    assert states == ["FAILED", "COMPLETE", "COMPLETE"]  # two attempts, then two more


def test_a_reference_that_kills_every_engine_is_given_up(tune: Tune, misbehave, folder: Path):
    misbehave(*(("kill", "evaluate", at) for at in range(1, 20)))
    done = tune(*RANDOM, "--trials", "5")
    assert done.code == 1
    assert json.loads((folder / "counts.json").read_text())["evaluate"] == 4
    trials = tune("show", "small", "--json").document["trials"]
    assert [(t["state"], t["failure"]) for t in trials] == [("FAILED", "out_of_memory")] * 5


@pytest.mark.parametrize("kills", [1, 2, 4])
def test_an_engine_killed_over_the_question_for_tasks_is_no_end(tune: Tune, misbehave, kills: int):
    misbehave(*(("kill", "check_tasks", at + 1) for at in range(kills)))
    done = tune(*RANDOM, "--trials", "2", "--json")
    assert done.code == 0, done.err
    assert {trial["state"] for trial in done.document["trials"]} == {"COMPLETE"}


@pytest.mark.usefixtures("processes")
def test_a_hang_is_a_timeout(tune: Tune, misbehave, folder: Path):
    with (folder / "study.yaml").open("a") as file:
        file.write("stall_s: 1\n")
    misbehave(("hang", "measure", 1))
    done = tune(*RANDOM, "--trials", "2", "--json")
    assert done.document["trials"][0]["failure"] == "timeout"
    assert done.document["trials"][1]["state"] == "COMPLETE"


def test_a_measured_peak_above_the_budget_names_both_figures(tune: Tune, misbehave):
    misbehave(("over_budget", "measure", 1))
    trial = tune(*RANDOM, "--trials", "2", "--json").document["trials"][0]
    assert f"{2 * BUDGET_BYTES} bytes" in trial["reason"]
    assert f"{BUDGET_BYTES} bytes" in trial["reason"]


def test_a_peak_that_a_fresh_process_does_not_repeat_is_no_verdict(tune: Tune, misbehave):
    misbehave(("over_budget", "measure", 4))
    words = (*RANDOM, "--objectives", "output_tps,tpot_ms")
    trials = tune(*words, "--trials", "2", "--json").document["trials"]
    assert {trial["state"] for trial in trials} == {"COMPLETE"}


def test_a_peak_that_a_fresh_process_repeats_makes_it_infeasible(tune: Tune, misbehave):
    misbehave(("over_budget", "measure", 4), ("over_budget", "measure", 5))
    words = (*RANDOM, "--objectives", "output_tps,tpot_ms")
    trials = tune(*words, "--trials", "2", "--json").document["trials"]
    assert [trial["state"] for trial in trials].count("INFEASIBLE") == 1


def test_nothing_fits_says_the_smallest_budget(tune: Tune):
    done = tune(*RANDOM, "--vram", "5MB", "--json")
    assert done.code == 3
    smallest = done.document["error"]["smallest_bytes"]
    assert tune(*RANDOM, "--vram", str(smallest), "--trials", "1").code == 0


def test_dry_run_runs_no_trial(tune: Tune, folder: Path):
    done = tune("--definition", "study.yaml", "--dry-run", "--json")
    assert done.code == 0
    assert done.document["plan"]["points"] > 1
    assert not list(folder.glob("expertune-*.yaml"))
    assert tune("studies").code == 1


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--output", "nowhere/x.yaml"), 1, "there is no folder"),
        (("--storage", "nonsense"), 2, "is not a storage URL"),
        (("--tasks", " , "), 2, "--tasks names none"),
        (("--study", "small", "--max-ttft-ms", "5"), 1, "asked something else"),
    ],
)
def test_a_dry_run_refuses_a_place_that_the_study_could_not_use(
    tune: Tune, study: Path, words: tuple[str, ...], code: int, says: str
):
    done = tune("--definition", "study.yaml", "--dry-run", *words)
    assert done.code == code
    assert says in done.err


def test_control_characters_of_a_name_are_escaped_in_errors(tune: Tune, study: Path):
    assert "there is no study 'a\\x1b[31m'" in tune("show", "a\x1b[31m").err


def test_a_folder_that_cannot_take_the_output_is_said_before_measuring(tune: Tune):
    done = tune("--definition", "study.yaml", "--output", "absent/best.yaml")
    assert done.code == 1
    assert "there is no folder" in done.err
    assert "trial 0" not in done.err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--model", "m", "--vram", "8GBB"], 2, "'8GBB' is not a size"),
        (["--model", "m", "--vram", "1GB,2GX"], 2, "'2GX' is not a size"),
        (["--model", "m"], 2, "no budget was given"),
        (["--model", "./absent", "--vram", "1GB"], 1, "default"),
        (["--definition", "absent.yaml"], 2, "cannot be read"),
        (["--definition", "study.yaml", "--sampler", "cmaes"], 2, "auto, tpe, gp"),
        (["--definition", "study.yaml", "--sampler", "best"], 2, "write one of"),
        (["--definition", "study.yaml", "--objectives", "speed"], 2, "objectives"),
        (["--definition", "study.yaml", "--tasks", "absent.yaml"], 2, "no file absent.yaml"),
        (["--definition", "study.yaml", "--prompts", "absent.txt"], 2, "cannot be read"),
        (["--definition", "study.yaml", "--storage", "nowhere"], 2, "not a storage URL"),
        (["--definition", "study.yaml", "--ray", "nowhere"], 2, "such as host:6379"),
        (["--definition", "study.yaml", "--model", "dense"], 1, "no experts"),
        (["--trails", "3"], 2, "No such option"),
        (["frobnicate"], 2, "No such command"),
    ],
)
def test_bad_input_is_one_sentence_with_its_exit_code(
    tune: Tune,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    says: str,
):
    monkeypatch.setenv("EXPERTUNE_STUDIES", str(folder))
    done = tune(*words)
    assert (done.code, done.out) == (code, "")
    assert says in done.err
    assert "Traceback" not in done.err


def start(folder: Path, *words: str, **knobs: object) -> subprocess.Popen[str]:
    source = str(Path(__file__).resolve().parents[3])
    environment = {**os.environ, "EXPERTUNE_FAKE": json.dumps(knobs), "PYTHONPATH": source}
    command = [sys.executable, "-m", "tuner", *RANDOM, *words]
    return subprocess.Popen(
        command, env=environment, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def wait_for(text: str, process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    deadline = time.monotonic() + 60
    for line in process.stderr:
        if text in line:
            return
        assert time.monotonic() < deadline
    raise AssertionError(f"the study ended before it said '{text}'")


def test_kill_9_loses_at_most_the_running_trial(tune: Tune, folder: Path):
    parent = start(folder, slow_s=0.15)
    wait_for("trial 2:", parent)
    parent.kill()
    parent.communicate()
    before = {t["number"]: t for t in tune("show", "small", "--json").document["trials"]}
    assert load_deployment(folder / "expertune-small.yaml").provenance.study == "small"
    done = tune(*RANDOM, "--json")
    assert done.code == 0, done.err
    trials = done.document["trials"]
    for trial in trials:
        old = before.get(trial["number"])
        if old is not None and old["state"] != "RUNNING":
            assert trial["started"] == old["started"]
    finished = [t for t in trials if t["state"] != "INTERRUPTED"]
    assert len(finished) == 6
    assert not any(t["state"] == "RUNNING" for t in trials)
    assert len(trials) - len(finished) <= 1


def test_ctrl_c_leaves_a_study_that_continues(tune: Tune, folder: Path):
    parent = start(folder, slow_s=0.2)
    wait_for("trial 1:", parent)
    parent.send_signal(signal.SIGINT)
    _, err = parent.communicate(timeout=30)
    assert parent.returncode == 130
    assert "the same command continues it" in err
    assert "Traceback" not in err
    study = tune("show", "small", "--json").document["study"]
    assert study["state"] == "INTERRUPTED"
    assert tune(*RANDOM).code == 0


def test_an_interrupted_study_leaves_one_document(
    tune: Tune, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        options, "terminate_interrupts", lambda: contextlib.nullcontext(lambda: True)
    )
    done = tune("--definition", "study.yaml", "--json")
    assert done.code == done.document["error"]["exit_code"] == 130
    assert "the same command continues it" in done.err


def test_an_interrupt_that_got_lost_ends_the_study_before_its_next_trial(
    tune: Tune, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        options, "terminate_interrupts", lambda: contextlib.nullcontext(lambda: True)
    )
    done = tune("--definition", "study.yaml")
    assert (done.code, "the same command continues it" in done.err) == (130, True)
    assert tune("show", "small", "--json").document["study"]["state"] == "INTERRUPTED"


def test_an_interrupt_while_optuna_is_told_of_a_trial_is_no_error(
    tune: Tune, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    stored = optuna.storages.RDBStorage.set_trial_state_values

    def interrupted(storage: Any, trial_id: int, state: TrialState, values: Any = None) -> bool:
        if state.is_finished():
            raise KeyboardInterrupt
        return stored(storage, trial_id, state, values)

    with monkeypatch.context() as patched:
        patched.setattr(optuna.storages.RDBStorage, "set_trial_state_values", interrupted)
        done = tune(*RANDOM)
    assert (done.code, "the same command continues it" in done.err) == (130, True), done.err
    assert tune(*RANDOM).code == 0


def test_a_second_parent_is_refused_by_name(tune: Tune, folder: Path):
    parent = start(folder, slow_s=0.3)
    wait_for("trial 0:", parent)
    done = tune(*RANDOM)
    assert done.code == 1
    assert f"study 'small' is already running (process {parent.pid})" in done.err
    parent.kill()
    parent.communicate()


def test_the_best_config_is_on_disk_after_the_first_trial(tune: Tune, folder: Path):
    parent = start(folder, slow_s=0.2)
    wait_for("trial 0:", parent)
    found = yaml.safe_load((folder / "expertune-small.yaml").read_text())
    assert found["provenance"]["trial"] == 0
    parent.kill()
    parent.communicate()


def test_a_timeout_ends_the_study_and_keeps_what_was_found(tune: Tune, misbehave):
    misbehave(slow_s=0.2)
    done = tune(*RANDOM, "--timeout", "2", "--trials", "500", "--json")
    assert done.code == 0, done.err
    assert 0 < done.document["study"]["trials"] < 500


def test_whoever_joins_a_continued_study_does_not_go_by_its_former_deadline(
    tune: Tune, folder: Path
):
    for timeout, kept in (["--timeout", "600"], float), ([], type(None)):
        assert tune(*RANDOM, "--trials", "2", *timeout).code == 0
        storage = f"sqlite:///{folder / 'data' / 'expertune' / 'expertune.db'}"
        memory = optuna.load_study(study_name="small", storage=storage)
        assert isinstance(memory.user_attrs[DEADLINE], kept)


def test_a_budget_beyond_the_containers_memory_is_said(tune: Tune, monkeypatch: pytest.MonkeyPatch):
    whole = probe()
    monkeypatch.setattr(
        "tuner.cli.study.probe", lambda _: replace(whole, ram_bytes=BUDGET_BYTES - 1)
    )
    words = ("--definition", "study.yaml", "--trials", "1")
    assert "more than the" in tune(*words, "--device", "cpu").err
    monkeypatch.setattr("tuner.cli.study.probe", lambda _: replace(whole, ram_bytes=BUDGET_BYTES))
    assert "more than the" not in tune(*words, "--device", "cpu").err
