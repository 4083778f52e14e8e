"""llama.cpp scripts: what the programs are called with, and what the comments own up to."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from engine.config.settings import config_paths
from engine.layout.prequantized import PrequantizedFormat
from engine.layout.record import Part
from tests.tuner.deployment.formats.made import EXPERTS, WIDE, deployment, facts
from tests.tuner.deployment.formats.shell import run_script, value_of
from tuner.deployment.formats.gguf import NEAREST, expert_layer_bytes
from tuner.deployment.formats.llama_cpp import CARRIED, LEFT_OUT, render_llama_cpp
from tuner.deployment.formats.script import reason

Q4_LAYER_BYTES = expert_layer_bytes(NEAREST[4], facts())
NASTY = "org/it's $(touch owned) `touch owned`\n; touch owned #"


def calls_of(settings: dict[str, object], folder: Path, **named: object) -> list[list[str]]:
    made = deployment(settings, **named)  # type: ignore[arg-type]
    return run_script(render_llama_cpp(made, facts()), folder)


def test_it_fetches_converts_quantizes_and_serves(tmp_path: Path):
    settings = {"precision.bits": 4, "batch.count": 2, "batch.size": 2, "kv.max_tokens": 512}
    fetch, convert, quantize, serve = calls_of(settings, tmp_path)
    assert fetch == ["hf", "download", "org/some-moe", "--revision", "c0ffee", "--local-dir",
                     "some-moe"]  # fmt: skip
    assert convert[1:3] == ["llama.cpp/convert_hf_to_gguf.py", "some-moe"]
    assert quantize[1:3] == ["--tensor-type", "ffn_.*exps=q4_K"]
    assert quantize[-3:] == ["some-moe-q4_k.gguf.16", "some-moe-q4_k.gguf.partial", "Q4_K_M"]
    assert serve[0] == "llama-server"
    assert value_of(serve, "--model") == "some-moe-q4_k.gguf"
    assert value_of(serve, "--parallel") == "4"
    assert value_of(serve, "--ctx-size") == "2048"
    assert (tmp_path / "some-moe-q4_k.gguf").is_file()
    assert not (tmp_path / "some-moe-q4_k.gguf.16").exists()


def test_a_file_that_is_there_is_only_served(tmp_path: Path):
    (tmp_path / "some-moe-q8_0.gguf").touch()
    assert [call[0] for call in calls_of({"precision.bits": 8}, tmp_path)] == ["llama-server"]


@pytest.mark.parametrize(
    ("layers_that_fit", "says"),
    [
        (7, []),
        (5, ["--n-cpu-moe", "3"]),  # two of seven, and the one layer without experts before them
        (0.5, ["--cpu-moe"]),
    ],
)
def test_as_many_layers_keep_their_experts_as_fit_into_the_slots(
    tmp_path: Path, layers_that_fit: float, says: list[str]
):
    slots = int(Q4_LAYER_BYTES * layers_that_fit)
    (*_, serve) = calls_of({"precision.bits": 4, "cache.expert_bytes": slots}, tmp_path)
    assert value_of(serve, "--n-gpu-layers") == "9"
    found = [word for word in serve if "cpu-moe" in word]
    assert found == says[:1]
    if len(says) > 1:
        assert value_of(serve, says[0]) == says[1]


def test_on_the_cpu_experts_are_mapped_and_the_bound_is_said(tmp_path: Path):
    made = deployment({"device.name": "cpu", "budget.vram_bytes": 64_000_000})
    text = render_llama_cpp(made, facts())
    assert "-p MemoryMax=64000000" in text
    (*_, serve) = run_script(text, tmp_path)
    assert value_of(serve, "--device") == "none"
    assert value_of(serve, "--load-mode") == "mmap"
    assert "--no-repack" in serve
    assert "--n-gpu-layers" not in serve


def test_on_the_cpu_a_model_that_fits_is_read_whole(tmp_path: Path):
    every = facts().expert_bytes["16"]
    (*_, serve) = calls_of({"device.name": "cpu", "cache.expert_bytes": every}, tmp_path)
    assert value_of(serve, "--load-mode") == "none"


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"kv.bits": 8}, {"--cache-type-k": "q8_0", "--cache-type-v": "q8_0"}),
        ({"kv.bits": 4}, {"--cache-type-k": "q4_0", "--flash-attn": "on"}),
        ({"prefill.chunk_tokens": 128, "batch.size": 2}, {"--ubatch-size": "256"}),
        ({"compute.dtype": "float16"}, {"--model": "some-moe-f16.gguf"}),
    ],
)
def test_a_setting_becomes_an_option(
    tmp_path: Path, settings: dict[str, object], options: dict[str, str]
):
    (*_, serve) = calls_of(settings, tmp_path)
    assert {name: value_of(serve, name) for name in options} == options


def test_keys_and_values_on_the_host_stay_there(tmp_path: Path):
    (*_, serve) = calls_of({"kv.placement": "host"}, tmp_path)
    assert "--no-kv-offload" in serve


@pytest.mark.parametrize(
    ("bits", "columns", "kind"),
    [(16, 256, "bf16"), (8, 32, "q8_0"), (4, 256, "q4_k"), (3, 256, "q3_k"), (2, 256, "q2_k"),
     (4, 96, "q4_0"), (2, 32, "q4_0"), (8, 48, "bf16")],
)  # fmt: skip
def test_the_nearest_type_is_one_that_the_rows_allow(bits: int, columns: int, kind: str):
    shapes = facts((Part("gate_up_proj", (64, columns)), Part("down_proj", (columns, 256))))
    text = render_llama_cpp(deployment({"precision.bits": bits}), shapes)
    assert f"GGUF=some-moe-{kind}.gguf" in text


def test_published_4_bit_experts_are_kept_by_the_converter(tmp_path: Path):
    shapes = facts(
        prequantized=PrequantizedFormat("mxfp4", 1, 32), expert_bytes={"16": 9, "prequantized": 9}
    )
    made = deployment({"precision.bits": "prequantized", "cache.expert_bytes": 9})
    calls = run_script(render_llama_cpp(made, shapes), tmp_path)
    assert [call[0] for call in calls] == ["hf", "python3", "llama-server"]


def test_published_int4_experts_become_the_nearest_type():
    shapes = facts(prequantized=PrequantizedFormat("int4", 1, 32), expert_bytes={"prequantized": 9})
    made = deployment({"precision.bits": "prequantized", "cache.expert_bytes": 9})
    assert "GGUF=some-moe-q4_k.gguf" in render_llama_cpp(made, shapes)


def test_a_plan_of_bits_becomes_its_average():
    table = ["8", "4", "4", "4", "4", "2", "2"]
    settings = {"precision.scheme": "by_layer", "precision.options.table": table}
    text = render_llama_cpp(deployment(settings), facts())
    assert "GGUF=some-moe-q4_k.gguf" in text
    assert "precision.options" in text


def test_non_expert_weights_in_fewer_bits_keep_embeddings(tmp_path: Path):
    (_, _, quantize, _) = calls_of({"precision.non_expert_bits": 8}, tmp_path)
    types = [quantize[n + 1] for n, word in enumerate(quantize) if word == "--tensor-type"]
    assert types == ["ffn_.*exps=bf16", ".=q8_0"]
    assert value_of(quantize, "--token-embedding-type") == "bf16"
    assert quantize[-1] == "Q8_0"


def test_a_folder_is_not_fetched(tmp_path: Path):
    calls = calls_of({}, tmp_path, model="/models/some-moe", revision="local")
    assert [call[0] for call in calls] == ["python3", "llama-server"]
    assert calls[0][2] == "/models/some-moe"


def test_names_cannot_run_anything(tmp_path: Path):
    calls = calls_of({}, tmp_path, model=NASTY, study=NASTY)
    assert not list(tmp_path.rglob("owned"))
    assert calls[0][2:4] == NASTY.split("\n")  # one word, of two lines


@pytest.mark.parametrize("path", config_paths())
def test_every_setting_is_carried_or_owned_up_to(path: str):
    assert path in CARRIED or reason(path, LEFT_OUT)


def test_what_does_not_carry_over_is_said_with_its_value():
    settings = {"prefetch.predictor": "next_gate", "prefetch.depth": 2, "cache.eviction": "lfu"}
    text = render_llama_cpp(deployment(settings), facts())
    for said in ("prefetch.predictor = next_gate", "prefetch.depth = 2", "cache.eviction = lfu"):
        assert said in text
    assert "with its own engine, not with llama.cpp" in text
    assert "output_tps 20 ± 1 tok/s" in text


def test_a_layers_bytes_follow_the_type():
    weights = sum(part.elements for part in WIDE)
    assert EXPERTS * weights * 4.5 / 8 == Q4_LAYER_BYTES


@pytest.mark.baselines
def test_llama_cpp_knows_every_option():
    spec = find_spec("xllamacpp")
    assert spec is not None
    assert spec.submodule_search_locations
    (library,) = Path(spec.submodule_search_locations[0]).glob("*.so")
    held = library.read_bytes()
    options = {*CARRIED.values(), "--alias", "--cache-type-v", "--flash-attn", "--load-mode",
               "--no-repack", "--cpu-moe", "--moe-cache-mib", "--batch-size"}  # fmt: skip
    made_elsewhere = {"--tensor-type", "--outtype"}  # of the quantizer and the converter
    missing = [o for o in options - made_elsewhere if o.encode() + b"\0" not in held]
    assert missing == []
