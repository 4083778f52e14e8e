"""Scores on the engine against plain transformers, item by item."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.config import EngineConfig
from engine.errors import UsageError
from engine.evaluate.evaluate import evaluate
from engine.evaluate.scoring import Continuation, score
from engine.evaluate.tasks import load_tasks, read_task
from engine.run.engine import Engine
from tests.engine.conftest import TEXT

BASE = {"compute.dtype": "float32", "cache.expert_bytes": "40%", "kv.max_tokens": 200}


@pytest.mark.parametrize("chunk", [7, 256])
def test_scores_equal_plain_transformers_item_by_item(
    engine: Engine, tiny_folder: Path, chunk: int
) -> None:
    engine.configure(EngineConfig().overlay({**BASE, "prefill.chunk_tokens": chunk}))
    generator = torch.Generator().manual_seed(3)
    lengths = [(1, 1), (5, 3), (30, 1), (12, 40), (5, 3), (63, 20)]
    items = [
        Continuation(*(tuple(torch.randint(3, 290, (n,), generator=generator).tolist())
                       for n in pair))
        for pair in lengths
    ]  # fmt: skip
    items.append(Continuation(items[2].context, (items[2].target[0] ^ 1,)))
    reference = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    for item, result in zip(items, score(engine, items), strict=True):
        with torch.no_grad():
            logits = reference(torch.tensor([item.input])).logits[0, len(item.context) - 1 :]
        rows = torch.log_softmax(logits, dim=-1)
        target = torch.tensor(item.target)
        expected = float(rows.gather(1, target[:, None]).sum())
        assert result.log_likelihood == pytest.approx(expected, abs=1e-3)
        assert result.greedy == bool((rows.argmax(-1) == target).all())


def test_requests_with_one_input_run_once(engine: Engine) -> None:
    engine.configure(EngineConfig().overlay(BASE))
    done: list[int] = []
    score(engine, [Continuation((3, 4, 5), (token,)) for token in range(4, 20)], done.append)
    assert done == [16]
    assert sum(engine.residency.counters.misses.values()) <= 3 * 3 * 2


def write_task(folder: Path) -> Path:
    items = [{"text": TEXT[start : start + 90]} for start in range(0, 40, 8)]
    (folder / "data.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    path = folder / "task.yaml"
    path.write_text(
        "task: tiny_bpb\ndataset_path: json\ndataset_kwargs: {data_files: {test: data.jsonl}}\n"
        "output_type: loglikelihood_rolling\ntest_split: test\ndoc_to_text: ''\n"
        "doc_to_target: '{{text}}'\nmetric_list:\n"
        "  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}\n"
    )
    return path


@pytest.mark.filterwarnings("ignore")
def test_lm_eval_runs_on_the_engine_and_quality_falls_with_bits(
    engine: Engine, tiny_folder: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    reports: dict[int, Any] = {}
    for bits in (16, 4, 2):
        engine.configure(EngineConfig().overlay({"precision.bits": bits, "kv.max_tokens": 200}))
        reports[bits] = evaluate(
            engine,
            tokenizer,
            [str(write_task(tmp_path))],
            cache_folder=tmp_path,
            limit=4,
            seed=0,
            reference=bits == 16,
        )
    assert reports[16].tasks[0].n == 4
    assert reports[16].kld_mean == pytest.approx(0, abs=1e-6)
    assert reports[16].top1_agreement == 1
    assert 0 < reports[4].kld_mean < reports[2].kld_mean
    assert reports[16].prefill_kld_mean == pytest.approx(0, abs=1e-6)
    assert reports[16].prefill_top1_agreement == 1
    assert 0 < reports[4].prefill_kld_mean < reports[2].prefill_kld_mean
    assert 0 < reports[2].prefill_top1_agreement < 1
    assert reports[16].bits_per_byte != reports[2].bits_per_byte
    assert reports[16].engine_tokens > 0


def test_a_task_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="knows no task 'no_such_task'"):
        load_tasks(["no_such_task"])
    with pytest.raises(UsageError, match="cannot be read"):
        read_task(tmp_path / "none.yaml")
    path = write_task(tmp_path)
    (tmp_path / "data.jsonl").unlink()
    with pytest.raises(UsageError, match="does not exist"):
        read_task(path)
