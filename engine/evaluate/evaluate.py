"""One evaluation of a configured engine: lm-eval's tasks, bits per byte, divergence."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.evaluate.divergence import (
    TOKENS,
    Divergence,
    compare_with_reference,
    keep_reference,
)
from engine.report import QualityReport, TaskResult
from engine.run.engine import Engine
from engine.types import Phase

Progress = Callable[[str, int, int], None]
_BITS_PER_BYTE = "bits_per_byte"


def evaluate(
    engine: Engine,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    cache_folder: Path,
    limit: int | None,
    seed: int,
    reference: bool,
    progress: Progress | None = None,
) -> QualityReport:
    """Run the tasks. limit: items a task; reference: keep the distributions for later divergences.

    Raises UsageError for unknown tasks or data that cannot be reached.
    """
    from engine.evaluate.language_model import EngineLanguageModel

    started = time.perf_counter()
    done = 0

    def on_done(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress("evaluate", done, 0)

    model = EngineLanguageModel(engine, tokenizer, on_done)
    outcome = _run_lm_eval(model, list(tasks), limit, seed)
    results = tuple(_task_results(outcome))
    text = _rolling_text(outcome)
    decode = _divergence(engine, model, text, cache_folder, reference, "decode")
    prefill = _divergence(engine, model, text, cache_folder, reference, "prefill")
    rolling = [r.value for r in results if r.metric == _BITS_PER_BYTE]
    return QualityReport(
        tasks=results,
        bits_per_byte=sum(rolling) / len(rolling) if rolling else None,
        kld_mean=decode.kld_mean if decode else None,
        top1_agreement=decode.top1_agreement if decode else None,
        seconds=time.perf_counter() - started,
        engine_tokens=model.scored_tokens,
        prefill_kld_mean=prefill.kld_mean if prefill else None,
        prefill_top1_agreement=prefill.top1_agreement if prefill else None,
    )


def _run_lm_eval(model: Any, tasks: list[str], limit: int | None, seed: int) -> Any:
    from lm_eval.evaluator import simple_evaluate

    from engine.evaluate.tasks import load_tasks

    configs, manager = load_tasks(tasks)
    try:
        return simple_evaluate(
            model=model,
            tasks=configs,
            limit=limit,
            task_manager=manager,
            bootstrap_iters=200,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
            log_samples=True,
        )
    except (ConnectionError, FileNotFoundError) as error:
        raise UsageError(
            f"the data of {', '.join(tasks)} cannot be reached ({error}): use local tasks, or "
            "download the data set first"
        ) from None


def _divergence(
    engine: Engine, model: Any, text: str, cache_folder: Path, reference: bool, phase: Phase
) -> Divergence | None:
    if not text:
        return None
    room = min(TOKENS, model.max_length - 1)
    tokens = [model.prefix_token_id, *model.tok_encode(text)][:room]
    if reference:
        keep_reference(engine, tokens, cache_folder, phase)
    return compare_with_reference(engine, tokens, cache_folder, phase)


def _task_results(outcome: Any) -> list[TaskResult]:
    rows = []
    for task, values in outcome["results"].items():
        n = outcome["n-samples"].get(task, {}).get("effective", 0)
        for key, value in values.items():
            metric, _, filter_name = key.partition(",")
            if metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            if not filter_name:
                continue
            stderr = values.get(f"{metric}_stderr,{filter_name}")
            rows.append(
                TaskResult(
                    task=task,
                    metric=metric,
                    value=float(value),
                    stderr=float(stderr) if isinstance(stderr, int | float) else None,
                    n=int(n),
                )
            )
    return rows


def _rolling_text(outcome: Any) -> str:
    """The texts of the first rolling-likelihood task, in order."""
    for samples in outcome["samples"].values():
        texts = [
            sample["arguments"]["gen_args_0"]["arg_0"]
            if isinstance(sample["arguments"], dict)
            else sample["arguments"][0][0]
            for sample in samples
            if _BITS_PER_BYTE in sample
        ]
        if texts:
            return "\n\n".join(texts)
    return ""
