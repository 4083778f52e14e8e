"""Every command but the study: documents with the contract's keys, files, exit codes."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from engine import __version__
from engine.config.settings import EngineConfig
from engine.facts.card_memory import CONTEXT_BYTES
from engine.facts.model import ModelFacts
from engine.memory import plan as memory
from tests.fakes.study import BUDGET_BYTES
from tests.tuner.conftest import Tune
from tuner.__main__ import run
from tuner.cli import bench, options
from tuner.cli.app import app
from tuner.cli.output import JSON_SCHEMA
from tuner.deployment.document import load_deployment
from tuner.deployment.formats.registry import FORMATS
from tuner.engine_client.session import EngineSession

COMMANDS = (
    "studies", "show", "export", "run", "bench", "plan", "profile", "doctor", "pack", "dashboard",
    "trace", "replay", "compare", "verify", "deploy", "service", "worker",
)  # fmt: skip
BUDGET = str(BUDGET_BYTES)
SMALL = ("--model", "m", "--vram", BUDGET, "--workload", "workload.yaml")


def every_command(command: Any, path: str = "") -> Iterator[str]:
    """Of this group, groups in it and their commands too; a group that only lists has none."""
    if not getattr(command, "no_args_is_help", False) or not path:
        yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from every_command(inner, f"{path} {name}".strip())


@pytest.mark.parametrize("command", list(every_command(typer.main.get_command(app))))
def test_help_has_an_example(tune: Tune, command: str):
    done = tune(*command.split(), "--help")
    assert done.code == 0
    assert f"Example: tune {command}".strip() in " ".join(done.out.split())


def test_every_command_is_offered(tune: Tune):
    out = tune("--help").out
    assert all(f"│ {command} " in out for command in COMMANDS)


def test_help_groups_commands_by_what_they_are_for(tune: Tune):
    panels = re.findall(r"^╭─ (.+?) ─", tune("--help").out, re.MULTILINE)
    assert panels[-4:] == ["Find a config", "Use it", "Look", "Prepare"]
    assert "Commands" not in panels
    assert "Shell completion" in panels


def test_version_is_the_programs(tune: Tune):
    done = tune("--version")
    assert (done.code, done.out) == (0, f"expertune {__version__}\n")


def test_a_shell_completes_commands(
    tune: Tune, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("_TUNE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "tune dep")
    monkeypatch.setenv("COMP_CWORD", "1")
    with pytest.raises(SystemExit) as ended:
        tune()
    assert (ended.value.code, capsys.readouterr().out.split()) == (0, ["deploy"])


def test_studies_lists_them(tune: Tune, study: Path):
    found = tune("studies", "--json").document["studies"]
    assert [(s["name"], s["model"], s["trials"], s["state"]) for s in found] == [
        ("small", "some-moe", 5, "FINISHED")
    ]
    assert "small" in tune("studies").out


def test_show_has_study_trials_and_front(tune: Tune, study: Path):
    document = tune("show", "small", "--json").document
    assert document["study"]["name"] == "small"
    assert len(document["trials"]) == 5
    assert document["front"]
    qualities = [trial["quality"] for trial in document["trials"] if trial["quality"]]
    assert qualities
    assert all("prefill_kld_mean" in quality for quality in qualities)
    out = tune("show", "small").out
    assert "Pareto front" in out
    assert "PED-ANOVA" in out


def test_show_compares_tasks_with_16_bits_item_by_item(tune: Tune, folder: Path):
    text = (folder / "study.yaml").read_text().replace("[a_task]", "[a_task, a_choice]")
    (folder / "study.yaml").write_text(text.replace("limit: 5", "limit: 40"))
    assert tune("--definition", "study.yaml", "--trials", "6").code == 0
    document = tune("show", "small", "--json").document
    judged = [trial for trial in document["trials"] if trial["quality"]]
    assert len({trial["params"]["precision.bits"] for trial in judged}) > 1
    for trial in judged:
        assert "items" not in trial["quality"]
        rows = {(row["task"], row["metric"]): row for row in trial["quality_paired"]}
        accuracy, bits = rows["a_choice", "acc"], rows["a_task", "bits_per_byte"]
        (stored,) = [row for row in trial["quality"]["tasks"] if row["metric"] == "acc"]
        assert accuracy["value"] == pytest.approx((stored["value"] - 0.25) / 0.75)
        assert accuracy["difference"]["n"] == bits["difference"]["n"] == 40
        lost = trial["params"]["precision.bits"] < 16
        assert (bits["difference"]["value"] > 0) is lost
        assert accuracy["difference"]["low"] <= accuracy["difference"]["high"] + 1e-12
    out = tune("show", "small").out
    assert "item by item against 16 bits" in out
    assert "a_choice acc" in out


def test_reading_without_a_store_says_what_to_do(tune: Tune):
    for words in (["studies"], ["show", "small"], ["export", "small"], ["dashboard"]):
        done = tune(*words)
        assert (done.code, "run a study first" in done.err) == (1, True)


@pytest.mark.parametrize("pick", ["knee", "throughput", "latency", "quality", "0"])
def test_export_picks(tune: Tune, study: Path, pick: str):
    done = tune("export", "small", "--pick", pick, "-o", "picked.yaml", "--json")
    assert done.code == 0, done.err
    deployment = load_deployment(study / "picked.yaml")
    assert deployment.provenance.trial == done.document["trial"]
    front = tune("show", "small", "--json").document["front"]
    if pick == "throughput":
        best = max(front, key=lambda trial: trial["scores"]["output_tps"])
        stated = best["confirmed"]["output_tps"]["value"]
        assert deployment.measured["output_tps"].value == pytest.approx(stated)


def test_export_without_a_file_prints_yaml(tune: Tune, study: Path):
    assert yaml.safe_load(tune("export", "small").out)["schema"] == "expertune/v1"


@pytest.mark.parametrize("name", FORMATS)
def test_export_writes_every_format(tune: Tune, study: Path, name: str):
    file = f"picked{FORMATS[name].suffix}"
    done = tune("export", "small", "--format", name, "-o", file, "--json")
    assert done.code == 0, done.err
    assert (study / file).read_text() == done.document["text"]
    assert done.document["format"] == name
    assert done.document["deployment"]["schema"] == "expertune/v1"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--format", "gguf"], 2, "this release writes yaml, llama.cpp, vllm, kubernetes"),
        (["--pick", "best"], 2, "write knee, throughput, latency, quality or a trial"),
        (["--pick", "99"], 2, "has no trial 99: it has trials 0 to 4"),
        (["-o", "absent/x.yaml"], 1, "cannot be written"),
    ],
)
def test_export_refuses(tune: Tune, study: Path, words: list[str], code: int, says: str):
    done = tune("export", "small", *words)
    assert done.code == code
    assert says in done.err


@pytest.mark.parametrize(
    "words",
    [["show", "absent"], ["export", "absent"], ["compare", "small", "absent"],
     ["worker", "absent"], ["run", "absent.yaml", "--prompt", "p"], ["verify", "absent.yaml"],
     ["pack", "--remove", "absent"], ["service", "token", "revoke", "absent"]],
)  # fmt: skip
def test_a_name_of_nothing_is_usage(tune: Tune, study: Path, words: list[str]):
    done = tune(*words)
    assert done.code == 2
    assert "absent" in done.err


def test_what_a_study_did_not_ask_for_cannot_be_picked_and_the_message_says_why(
    tune: Tune, folder: Path
):
    words = ("--objectives", "output_tps,tpot_ms", "--trials", "1")
    assert tune("--definition", "study.yaml", *words).code == 0
    done = tune("export", "small", "--pick", "quality")
    assert done.code == 2
    assert "quality is no objective of this study; write knee, throughput, latency" in done.err


def test_one_trial_is_not_several(tune: Tune, folder: Path):
    assert tune("--definition", "study.yaml", "--trials", "1").code == 0
    assert "FINISHED, 1 trial, 1 COMPLETE" in tune("show", "small").out


def test_an_infeasible_trial_cannot_be_exported(tune: Tune, folder: Path, misbehave):
    misbehave(("over_budget", "measure", 1))
    tune("--definition", "study.yaml", "--trials", "2")
    done = tune("export", "small", "--pick", "0")
    assert done.code == 1
    assert "trial 0 is INFEASIBLE" in done.err


def test_run_streams_and_has_a_document(tune: Tune, study: Path):
    words = ("run", "expertune-small.yaml", "--prompt", "hello", "--max-tokens", "3")
    assert tune(*words).out == " word0 word1 word2\n"
    assert tune(*words, "--json").document == {
        "schema": JSON_SCHEMA, "text": " word0 word1 word2", "tokens": [0, 1, 2],
        "metrics": {"output_tps": 100.0},
    }  # fmt: skip


def test_run_asks_for_the_revision_that_was_measured(
    tune: Tune, study: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[str | None] = []
    plain = options.open_session

    def spy(*arguments: Any, revision: str | None = None, **named: Any) -> EngineSession:
        asked.append(revision)
        return plain(*arguments, revision=revision, **named)

    monkeypatch.setattr(options, "open_session", spy)
    tune("run", "expertune-small.yaml", "--prompt", "p")
    tune("run", "expertune-small.yaml", "--prompt", "p", "--model", "some-moe")
    tune("bench", "expertune-small.yaml", "--workload", "workload.yaml")
    measured = load_deployment(study / "expertune-small.yaml").model.revision
    assert measured.startswith("commit-")
    assert asked == [measured, None, measured]


def test_run_refuses_another_models_config(tune: Tune, study: Path):
    done = tune("run", "expertune-small.yaml", "--prompt", "p", "--model", "other")
    assert done.code == 2
    assert "fingerprint" in done.err


def test_doctor_describes_machine_and_model(tune: Tune):
    document = tune("doctor", "--model", "m", "--json").document
    assert document["machine"]["threads"] >= 1
    model = document["model"]
    assert {
        "family", "moe_layers", "experts", "experts_per_token", "non_expert_bytes", "expert_bytes",
        "parity_max_abs_diff", "parity_max_abs_logit",
    } <= set(model)  # fmt: skip
    assert set(model["expert_bytes"]) == {"16", "8", "4", "3", "2"}
    assert model["parity_max_abs_diff"] == 1e-6
    quick = tune("doctor", "--model", "m", "--no-parity", "--json").document["model"]
    assert quick["parity_max_abs_diff"] is None
    assert "model" not in tune("doctor", "--json").document


def test_doctor_says_whether_the_native_library_is_used(
    tune: Tune, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("engine.native.description.load", lambda: "it is not built: do this")
    native = tune("doctor", "--json").document["native"]
    assert (native["instruction_set"], native["reason"]) == (None, "it is not built: do this")
    assert "it is not built: do this" in " ".join(tune("doctor").out.split())


def test_a_model_without_experts_is_refused(tune: Tune):
    done = tune("doctor", "--model", "dense")
    assert done.code == 1
    assert "nothing to offload" in done.err


def test_plan_shows_the_memory_equation(tune: Tune):
    document = tune("plan", "--model", "m", "--vram", BUDGET, "--json").document
    rows = {row["bits"]: row for row in document["rows"]}
    assert rows[4]["resident_fraction"] == 1.0
    assert 0 < rows[16]["resident_fraction"] < 1
    for row in rows.values():
        assert row["total_bytes"] <= BUDGET_BYTES
    assert "slots" in tune("plan", "--model", "m", "--vram", BUDGET).out


def test_plan_counts_the_context_of_an_accelerator(tune: Tune, monkeypatch: pytest.MonkeyPatch):
    words = ("plan", "--model", "m", "--vram", "2GB", "--json")
    on_host = tune(*words).document["rows"][0]["workspace_bytes"]
    monkeypatch.setattr(EngineSession, "opened_device", property(lambda _: "cuda:0", _ignore))
    on_card = tune(*words).document["rows"][0]["workspace_bytes"]
    assert on_card - on_host == CONTEXT_BYTES


@pytest.mark.parametrize(
    "words",
    [
        ("plan", "--model", "m", "--vram", "2GB"),
        ("--definition", "study.yaml", "--vram", "2GB", "--dry-run"),
        ("--definition", "study.yaml", "--vram", "2GB", "--trials", "2"),
        ("bench", "--model", "m", "--vram", "2GB", "--workload", "workload.yaml", "--repeats", "2"),
    ],
    ids=" ".join,
)
def test_every_plan_is_of_the_opened_device(
    tune: Tune, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
):
    planned: list[str] = []
    complete = memory.complete

    def noted(config: EngineConfig, facts: ModelFacts) -> EngineConfig:
        planned.append(config.device.name)
        return complete(config, facts)

    monkeypatch.setattr(memory, "complete", noted)
    monkeypatch.setattr(EngineSession, "opened_device", property(lambda _: "cuda:0", _ignore))
    done = tune(*words)
    assert done.code == 0, done.err
    assert set(planned) == {"cuda:0"}


def _ignore(session: EngineSession, value: str) -> None:
    """A device that the fake engine says does not count."""


def test_plan_that_fits_nothing_names_the_smallest_budget(tune: Tune):
    done = tune("plan", "--model", "m", "--vram", "5MB", "--json")
    assert done.code == 3
    smallest = str(done.document["error"]["smallest_bytes"])
    assert tune("plan", "--model", "m", "--vram", smallest).code == 0


def test_profile_and_pack_have_documents(tune: Tune):
    assert (
        tune("profile", "--model", "m", "--json").document["profile"]["memory_bytes_per_s"] == 8e9
    )
    packs = tune("pack", "--model", "m", "--bits", "8,4", "--json").document["packs"]
    assert [pack["bits"] for pack in packs] == [8, 4]
    assert tune("pack", "--model", "m", "--bits", "5").code == 2


def test_profile_keeps_the_timings_of_a_model(tune: Tune):
    document = tune("profile", "--model", "m", "--bits", "16,4", "--json").document
    assert document["timings"]["expert_s"].keys() == {"16", "4"}
    assert Path(document["timings_path"]).is_file()
    assert "timings" not in tune("profile", "--model", "m", "--no-timings", "--json").document


def test_a_trace_is_replayed_with_the_timings_that_profile_kept(tune: Tune, folder: Path):
    traced = ("trace", "--model", "m", "--workload", "workload.yaml", "-o", "routing.npz")
    assert tune(*traced, "--json").document["passes"] == 4 * 4 * 7  # rounds, sequences
    done = tune("replay", "routing.npz", "--policies", "on_demand,lru", "--json")
    assert done.code == 2
    assert "tune profile" in done.err
    assert tune("profile", "--model", "m", "--json").code == 0
    grid = ("--policies", "on_demand,lru", "--set", "cache.expert_bytes=25%,75%")
    done = tune("replay", "routing.npz", *grid, "--json")
    assert done.code == 0, done.err
    rows = {row["name"]: row["predicted"] for row in done.document["rows"]}
    assert len(rows) == 4
    few, many = (rows[f"lru cache.expert_bytes={fraction}"] for fraction in ("25%", "75%"))
    assert rows["on_demand cache.expert_bytes=25%"]["expert_hit_rate"] == 0
    assert 0 < few["expert_hit_rate"] < many["expert_hit_rate"] <= many["oracle_hit_rate"]
    assert few["output_tps"] < many["output_tps"]
    assert done.document["label"] == "predicted"


def test_published_figures_of_a_machine_predict_without_any_measurement(tune: Tune, folder: Path):
    tune("trace", "--model", "m", "--workload", "workload.yaml", "-o", "routing.npz", "--json")
    done = tune("replay", "routing.npz", "--device", "predicted:laptop_8gb", "--policies", "lru")
    assert done.code == 0, done.err
    assert "nothing was run" in done.out
    unknown = tune("replay", "routing.npz", "--device", "predicted:laptop_9gb")
    assert unknown.code == 2
    assert "laptop_8gb" in unknown.err


def test_what_is_no_trace_is_refused(tune: Tune, folder: Path):
    (folder / "no.npz").write_text("nothing")
    done = tune("replay", "no.npz")
    assert done.code == 1
    assert "tune trace" in done.err


def test_bench_interleaves_policies(tune: Tune):
    done = tune("bench", *SMALL, "--policies", "on_demand,lru,next_gate", "--json")
    assert done.code == 0, done.err
    document = done.document
    assert [row["name"] for row in document["rows"]] == ["on_demand", "lru", "next_gate"]
    for row in document["rows"]:
        assert {"value", "low", "high", "n", "unit"} <= set(row["metrics"]["decode_tps"])
        assert row["metrics"]["decode_tps"]["n"] == 3
    configs = {row["name"]: row["config"] for row in document["rows"]}
    assert configs["on_demand"]["cache"]["eviction"] == "none"
    assert configs["next_gate"]["prefetch"]["depth"] == 1
    assert {"machine", "provenance"} <= set(document)
    order = [line for line in done.err.splitlines() if line.startswith("round")]
    assert [line.split(": ")[1] for line in order] == ["on_demand", "lru", "next_gate"] * 3


def test_bench_makes_a_row_of_each_value(tune: Tune):
    done = tune("bench", *SMALL, "--set", "precision.bits=8,4", "--set", "batch.count=2", "--json")
    rows = done.document["rows"]
    assert [row["name"] for row in rows] == ["precision.bits=8", "precision.bits=4"]
    assert all(row["config"]["batch"]["count"] == 2 for row in rows)
    assert rows[1]["ratio_to_first"]["output_tps"]["value"] > 1


def test_bench_takes_policies_apart(tune: Tune):
    words = (
        "--policies",
        "lru,scratchpipe",
        "--ablate",
        "--set",
        "batch.count=2,1",
        "--repeats",
        "1",
    )
    document = tune("bench", *SMALL, *words, "--json").document
    rows = {row["name"]: row for row in document["rows"]}
    lacks = ("", " without predict", " without evict", " without transfer")
    counts = (2, 1)
    expected = [f"lru batch.count={count}" for count in counts]
    expected.insert(1, "lru without batch batch.count=2")
    for count in counts:
        expected += [f"scratchpipe{lack} batch.count={count}" for lack in lacks]
        expected += ["scratchpipe without batch batch.count=2"] if count > 1 else []
    assert list(rows) == expected
    without = rows["scratchpipe without evict batch.count=2"]
    assert (without["policy"], without["without"]) == ("scratchpipe", "evict")
    assert without["config"]["cache"]["eviction"] == "lru"
    assert without["config"]["prefetch"]["predictor"] == "oracle"


BASELINES_WITHOUT_EXTRA = ["transformers resident", "accelerate disk"]
LLAMA_CPP = ["llama.cpp mmap", "llama.cpp resident"]


def test_rows_that_keep_less_of_keys_and_values_show_their_divergence(tune: Tune):
    words = ("--policies", "lru", "--set", "kv.bits=16,8", "--repeats", "1")
    rows = {r["name"]: r for r in tune("bench", *SMALL, *words, "--json").document["rows"]}
    assert "kld_mean" not in rows["lru kv.bits=16"]["metrics"]
    assert "kld_mean" in rows["lru kv.bits=8"]["metrics"]


def test_lossy_rows_show_their_divergence_beside_plain_ones(tune: Tune):
    words = ("--policies", "lru,hobbit", "--set", "precision.bits=16,4", "--repeats", "1")
    rows = {r["name"]: r for r in tune("bench", *SMALL, *words, "--json").document["rows"]}
    assert "kld_mean" not in rows["lru precision.bits=16"]["metrics"]
    for name in ("lru precision.bits=4", "hobbit precision.bits=4"):
        assert rows[name]["metrics"]["kld_mean"]["value"] > 0
    plain = tune("bench", *SMALL, "--set", "precision.bits=4", "--repeats", "1", "--json").document
    assert "kld_mean" not in plain["rows"][0]["metrics"]


def test_plan_says_what_binds_once_the_model_was_timed(tune: Tune):
    assert (
        "plan" not in tune("plan", "--model", "m", "--vram", BUDGET, "--json").document["rows"][0]
    )
    assert tune("profile", "--model", "m", "--device", "cpu", "--json").code == 0
    words = ("--model", "m", "--vram", BUDGET, "--device", "cpu")
    rows = tune("plan", *words, "--json").document["rows"]
    (row,) = [row for row in rows if row["bits"] == 4]
    assert row["plan"]["batch_count"] >= 1
    assert row["plan"]["bottleneck"] in ("compute", "transfer")
    assert "micro-batches" in tune("plan", *words).out


@pytest.mark.parametrize("installed", [True, False])
def test_bench_adds_baselines_and_config_files(
    tune: Tune, study: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
):
    monkeypatch.setattr(
        "tuner.cli.bench.find_spec", lambda name: ModuleSpec(name, None) if installed else None
    )
    done = tune("bench", "expertune-small.yaml", "--baselines", "--repeats", "2", "--json")
    assert done.code == 0, done.err
    names = [row["name"] for row in done.document["rows"]]
    baselines = BASELINES_WITHOUT_EXTRA + (LLAMA_CPP if installed else [])
    assert names == ["expertune-small", *baselines]
    assert ("pip install 'expertune[baselines]'" in done.err) is not installed


@pytest.mark.parametrize(("device", "said"), [("cpu", False), ("cuda:0", True)])
def test_bench_says_that_other_engines_leave_a_card_alone(
    device: str, said: bool, capsys: pytest.CaptureFixture[str]
):
    base = EngineConfig().overlay({"device.name": device})
    rows = bench._baseline_rows(base, "m", trust_remote_code=False, revision=None)
    assert {row.name for row in rows} >= set(BASELINES_WITHOUT_EXTRA)
    assert (f"use nothing of {device}" in capsys.readouterr().err) is said


@pytest.mark.parametrize("name", ["r.md", "r.html"])
def test_bench_writes_a_report(tune: Tune, folder: Path, name: str):
    done = tune("bench", *SMALL, "--policies", "lru", "--repeats", "2", "--report", name)
    assert done.code == 0, done.err
    text = (folder / name).read_text()
    for word in ("lru", "Machine:", "regret", "disk_wait"):
        assert word in text


def test_bench_puts_what_was_published_beside_what_it_measured(tune: Tune):
    words = ("bench", *SMALL, "--policies", "on_demand,fate", "--ablate", "--repeats", "2")
    document = tune(*words, "--json").document
    entries = {(e["metric"], e["over"]): e for e in document["published"]}
    decode = entries["decode_tps", "on_demand"]
    assert decode["measured"]["value"] > 1
    # the fake engine's noise follows its config: equal but for that
    assert decode["limit_ratio"] >= decode["measured"]["value"] * (1 - 1e-4)
    assert decode["bottleneck"] in ("compute", "transfer")
    assert entries["decode_tps", "activation_path"]["measured"] is None
    effects = {effect["mechanism"]: effect["ratios"] for effect in document["ablation"]}
    assert set(effects) == {"predict", "evict", "allocate", "transfer", "order", "precision"}
    assert effects["predict"]["decode_tps"]["n"] == 2
    derived = {entry["row"]: entry for entry in document["derived"]}
    assert derived["on_demand"]["regret"]["value"] > 0
    assert "regret" not in derived["fate"]  # mixed sizes have no bound
    out = " ".join(tune(*words).out.split())
    assert "Published beside measured" in out
    assert "add activation_path to --policies" in out


def test_a_row_that_fails_leaves_the_others(tune: Tune):
    done = tune("bench", *SMALL, "--set", "cache.expert_bytes=100%,25%", "--json")
    assert done.code == 0
    first, second = done.document["rows"]
    assert "the budget is" in first["error"]
    assert second["error"] is None


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "nothing to measure"),
        ([*SMALL, "--policies", "lruu"], 2, "the nearest is 'lru'"),
        ([*SMALL, "--set", "cache.expert_byte=1"], 2, "nearest is 'cache.expert_bytes'"),
        ([*SMALL, "--set", "precision.bits"], 2, "write path=value"),
        ([*SMALL, "--report", "r.pdf"], 2, ".md or .html"),
        ([*SMALL, "--ablate"], 2, "name some with --policies"),
        (["--model", "m", "--vram", "5MB", "--workload", "workload.yaml"], 3, "at least"),
        (["absent.yaml"], 2, "cannot be read"),
    ],
)
def test_bench_refuses(tune: Tune, words: list[str], code: int, says: str):
    done = tune("bench", *words)
    assert done.code == code
    assert says in done.err


def test_an_error_under_json_is_one_document(tune: Tune):
    done = tune("show", "absent", "--json")
    assert json.loads(done.out)["error"]["exit_code"] == done.code


def test_policies_need_the_studies_folder(
    tune: Tune, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("EXPERTUNE_STUDIES", str(folder / "absent"))
    done = tune("bench", *SMALL, "--policies", "lru")
    assert done.code == 2
    assert "set EXPERTUNE_STUDIES to one that holds policies/" in done.err


def test_closed_streams_and_a_late_mistake_end_in_no_traceback(
    tune: Tune, study: Path, monkeypatch: pytest.MonkeyPatch
):
    late = tune("bench", *SMALL, "--report", "nowhere/x.md")
    assert (late.code, "round" in late.err) == (1, False)
    assert "names none" in tune("bench", *SMALL, "--policies", "").err
    assert "is no deployment" in tune("run", "study.yaml", "--prompt", "x").err
    for stream in ("stdout", "stderr"):  # `tune studies >&-`
        with monkeypatch.context() as closed:
            closed.setattr(sys, stream, None)
            assert run(["studies"]) == 0
            getattr(sys, stream).close()


def test_a_log_level_that_does_not_exist_is_said_and_nothing_fails():
    made = subprocess.run(
        [sys.executable, "-m", "tuner", "--version"],
        env={**os.environ, "EXPERTUNE_LOG": "nonsense"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    assert "EXPERTUNE_LOG=NONSENSE is no level" in made.stderr


def test_show_names_the_settings_that_differ_from_the_defaults(tune: Tune, study: Path):
    shown = tune("show", "small").out
    trials = tune("show", "small", "--json").document["trials"]
    assert any(trial["params"]["prefetch.depth"] == 0 for trial in trials)
    assert "cache.expert_bytes=" in shown
    assert "prefetch.depth=0" not in shown


def test_a_plan_gives_the_reason_of_each_automatic_choice(tune: Tune):
    words = ("plan", "--model", "some-moe", "--vram", "60MB")
    document = tune(*words, "--json").document
    chosen = {one["setting"]: one for one in document["automatic"]}
    assert {"device.name", "cache.expert_bytes", "kv.max_tokens", "kernel.name"} <= set(chosen)
    assert all(one["value"] and one["reason"] for one in document["automatic"])
    assert "precision.non_expert_bits" not in chosen["searched by `tune`"]["value"]  # none there
    assert "batch.count" in chosen["searched by `tune`"]["value"]
    shown = tune(*words).out
    assert "Chosen by rule" in shown
    assert "cache.expert_bytes" in shown


def test_a_study_searches_presets(tune: Tune):
    words = ("--definition", "study.yaml", "--objectives", "output_tps,tpot_ms")
    done = tune(*words, "--policies", "fate,klotski", "--trials", "8", "--json")
    assert done.code == 0, done.err
    tried = {trial["params"]["policy"] for trial in done.document["trials"]}
    assert "own" in tried
    assert tune(*words, "--policies", "fait", "--study", "other").code == 2
