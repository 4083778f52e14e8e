"""vLLM scripts: what `vllm serve` is called with, and what the comments own up to."""

import subprocess
from pathlib import Path

import pytest

from engine.config.settings import config_paths
from engine.layout.prequantized import PrequantizedFormat
from tests.tuner.deployment.formats.made import deployment, facts
from tests.tuner.deployment.formats.shell import run_script, value_of
from tuner.deployment.formats.script import reason
from tuner.deployment.formats.vllm import CARRIED, LEFT_OUT, render_vllm

NASTY = "org/it's $(touch owned)\n; touch owned #"


def call_of(settings: dict[str, object], folder: Path, **environment: str) -> list[str]:
    (call,) = run_script(render_vllm(deployment(settings), facts()), folder, **environment)
    return call


def test_sequences_room_and_budget_become_options(tmp_path: Path):
    settings = {"batch.count": 2, "batch.size": 3, "kv.max_tokens": 512}
    call = call_of(settings, tmp_path)
    assert call[:3] == ["vllm", "serve", "org/some-moe"]
    wanted = {
        "--max-num-seqs": "6", "--max-model-len": "512", "--max-num-batched-tokens": "768",
        "--dtype": "bfloat16", "--kv-cache-dtype": "auto", "--revision": "c0ffee",
        "--gpu-memory-utilization": "0.75", "--served-model-name": "org/some-moe",
    }  # fmt: skip
    assert {name: value_of(call, name) for name in wanted} == wanted


def test_what_the_slots_do_not_hold_is_offloaded(tmp_path: Path):
    gib = 1 << 30
    large = facts(expert_bytes={"16": 9 * gib})
    made = deployment({"cache.expert_bytes": 2 * gib})
    (call,) = run_script(render_vllm(made, large), tmp_path)
    assert value_of(call, "--cpu-offload-gb") == "7"
    assert value_of(call, "--cpu-offload-params") == "experts"


def test_a_model_that_fits_is_not_offloaded(tmp_path: Path):
    call = call_of({"cache.expert_bytes": facts().expert_bytes["16"]}, tmp_path)
    assert "--cpu-offload-gb" not in call


def test_8_bits_are_made_as_it_loads(tmp_path: Path):
    call = call_of({"precision.bits": 8}, tmp_path)
    assert value_of(call, "--quantization") == "int8_per_channel_weight_only"


def test_fewer_bits_ask_for_another_checkpoint(tmp_path: Path):
    with pytest.raises(subprocess.CalledProcessError):
        call_of({"precision.bits": 4}, tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    call = call_of({"precision.bits": 4}, other, MODEL="org/some-moe-awq")
    assert call[2] == "org/some-moe-awq"
    assert "--revision" not in call  # that of another checkpoint
    assert "--quantization" not in call  # the checkpoint says it


def test_published_codes_are_read_as_they_are(tmp_path: Path):
    shapes = facts(
        prequantized=PrequantizedFormat("mxfp4", 1, 32), expert_bytes={"16": 9, "prequantized": 9}
    )
    made = deployment({"precision.bits": "prequantized", "cache.expert_bytes": 9})
    (call,) = run_script(render_vllm(made, shapes), tmp_path)
    assert call[2] == "org/some-moe"
    assert "--quantization" not in call


@pytest.mark.parametrize("gpus", [(), ({"index": 0, "total_bytes": None},)])
def test_a_share_of_unknown_memory_is_asked_for_in_a_comment(
    tmp_path: Path, gpus: tuple[dict[str, object], ...]
):
    text = render_vllm(deployment(gpus=gpus), facts())
    (call,) = run_script(text, tmp_path)
    assert "--gpu-memory-utilization" not in call
    assert "add --gpu-memory-utilization" in text


def test_a_config_of_the_cpu_is_said_to_be_derived():
    text = render_vllm(deployment({"device.name": "cpu"}), facts())
    assert "derived, not tried" in " ".join(text.replace("#", " ").split())


def test_names_cannot_run_anything(tmp_path: Path):
    text = render_vllm(deployment(model=NASTY, study=NASTY, revision="local"), facts(path=NASTY))
    (call,) = run_script(text, tmp_path)
    assert not list(tmp_path.rglob("owned"))
    assert call[2:4] == NASTY.split("\n")  # one word, of two lines


@pytest.mark.parametrize("path", config_paths())
def test_every_setting_is_carried_or_owned_up_to(path: str):
    assert path in CARRIED or reason(path, LEFT_OUT)
