"""llama.cpp as a baseline: what it refuses, and (marked baselines) the demo model on the real
wheel."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.baselines.gguf_file import check_comparable
from engine.baselines.llama_cpp_baseline import LlamaCppBaseline
from engine.contract.requests import Workload
from engine.errors import ModelError, RemoteCodeError, UsageError
from engine.measure.pass_through import Sequenced

DEMO = Path(__file__).resolve().parents[3] / "studies" / "demo"
LLAMA_CPP = ("llama.cpp mmap", "llama.cpp resident")


def write_config(folder: Path, **values: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_a_missing_extra_is_named(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    baseline = LlamaCppBaseline("llama.cpp mmap", tmp_path, lambda event: None)
    with pytest.raises(UsageError, match=r"pip install 'expertune\[baselines\]'"):
        baseline.run("open", {"model": str(tiny_folder)})


@pytest.mark.parametrize(
    ("family", "normalised", "says"),
    [
        ("qwen3_moe", False, "always normalises .* norm_topk_prob true"),
        ("olmoe", True, "never normalises .* norm_topk_prob false"),
    ],
)
def test_refuses_a_router_that_llama_cpp_computes_otherwise(
    tmp_path: Path, family: str, normalised: bool, says: str
) -> None:
    folder = write_config(tmp_path, model_type=family, norm_topk_prob=normalised)
    with pytest.raises(ModelError, match=says):
        check_comparable(folder, trust_remote_code=False)
    write_config(tmp_path, model_type=family, norm_topk_prob=not normalised)
    check_comparable(folder, trust_remote_code=False)


def test_refuses_code_of_the_checkpoint(tmp_path: Path) -> None:
    folder = write_config(tmp_path, model_type="qwen3_moe", norm_topk_prob=True)
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": "own.Own"}}')
    with pytest.raises(RemoteCodeError, match="--trust-remote-code"):
        check_comparable(folder, trust_remote_code=False)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("xllamacpp", reason="install the extra: make baselines")
    return tmp_path_factory.mktemp("cache")


def demo_lines() -> list[dict[str, str]]:
    return [json.loads(line) for line in (DEMO / "prompts.jsonl").read_text().splitlines()]


def opened(name: Any, cache: Path) -> LlamaCppBaseline:
    baseline = LlamaCppBaseline(name, cache, lambda event: None)
    baseline.run("open", {"model": str(DEMO / "model")})
    config = {"budget": {"vram_bytes": 60_000_000}, "kv": {"max_tokens": 256}}
    baseline.run("configure", {"config": config})
    return baseline


@pytest.mark.baselines
@pytest.mark.parametrize("name", LLAMA_CPP)
def test_measures_the_demo_model_on_its_own_text(name: str, cache: Path) -> None:
    lines = demo_lines()[:2]
    workload = Workload(
        name="two",
        prompts=tuple(line["prompt"] for line in lines),
        continuations=tuple(line["continuation"] for line in lines),
        prompt_tokens=32,
        output_tokens=8,
        sequences=2,
    )
    baseline = opened(name, cache)
    try:
        report = baseline.run("measure", {"workload": workload.to_json(), "repeats": 2})
    finally:
        baseline.run("close", {})
    assert report["environment"]["forced_text"]
    assert report["environment"]["no_extra_bufts"] == (name == "llama.cpp mmap")
    for metric in ("output_tps", "decode_tps", "prefill_tps", "ttft_ms", "tpot_ms"):
        assert report["metrics"][metric]["value"] > 0
    assert len(list(cache.glob("gguf/*/*"))) == 1


@pytest.mark.baselines
def test_the_forced_tokens_are_the_texts_own_and_free_ones_agree_with_transformers(
    cache: Path,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    model = AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float32).eval()
    baseline = opened("llama.cpp resident", cache)
    asked: list[dict[str, Any]] = []
    answers: list[dict[str, Any]] = []
    server = baseline._server

    class Listening:
        def handle_completions(self, request: dict[str, Any]) -> Any:
            asked.append(request)
            answers.append(server.handle_completions(request))
            return answers[-1]

    baseline._server = Listening()
    agreed = 0

    for line in demo_lines()[:8]:
        prompt = tuple(tokenizer(line["prompt"])["input_ids"][-64:])
        forced = tuple(tokenizer(line["continuation"])["input_ids"][:8])
        baseline._sequence(Sequenced(prompt, forced), 8)
        assert answers[-1]["choices"][0]["text"] == tokenizer.decode(forced)
        baseline._sequence(Sequenced(prompt, ()), 2)
        with torch.inference_mode():
            best = int(model(torch.tensor([prompt])).logits[0, -1].argmax())
        agreed += answers[-1]["choices"][0]["text"].startswith(tokenizer.decode([best]))
    baseline._server = server
    baseline.run("close", {})
    assert agreed >= 6  # 4 bits against 32
