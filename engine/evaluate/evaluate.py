"""One evaluation of a configured engine: lm-eval's tasks, bits per byte, divergence."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.contract.report import QualityReport
from engine.contract.requests import TaskOptions
from engine.errors import EvaluationError
from engine.evaluate.divergence import TOKENS, Divergence, Reader, diverge, open_reader
from engine.evaluate.journal import Journal, journal_path
from engine.evaluate.results import BITS_PER_BYTE, rolling_texts, task_items, task_results
from engine.evaluate.routes import RouteRecorder
from engine.evaluate.scoring import Observer, passes_layer_wise
from engine.run.engine import Engine
from engine.trace.trace import scored_trace_path

if TYPE_CHECKING:  # importing it imports lm-eval
    from engine.evaluate.tasks import LoadedTasks

Progress = Callable[[str, int, int], None]
BOOTSTRAP_ROUNDS = 200


def evaluate(
    engine: Engine,
    tokenizer: Any,
    tasks: Sequence[str],
    options: TaskOptions,
    *,
    cache_folder: Path,
    reference: bool,
    progress: Progress | None = None,
) -> QualityReport:
    """Run the tasks. reference: keep the distributions for later divergences.

    Requests that a killed evaluation of the same settings finished are read from its journal in
    cache_folder, unless outputs depend on which experts happen to be resident. Raises TaskError for
    tasks that cannot run, EvaluationError for values that are not numbers.
    """
    from engine.evaluate.check import require_template
    from engine.evaluate.language_model import EngineLanguageModel
    from engine.evaluate.tasks import load_tasks

    started = time.perf_counter()
    done = total = 0

    def on_done(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress("evaluate", done, total)

    assert engine.config is not None
    journal = None
    if passes_layer_wise(engine):
        journal = Journal(journal_path(engine.facts, engine.config, cache_folder))
    watch = _PrefillWatch(engine, cache_folder, reference)
    routes = RouteRecorder(engine.facts) if reference else None
    model = EngineLanguageModel(
        engine,
        tokenizer,
        on_done,
        journal,
        observe=lambda texts: watch.open(_divergence_tokens(model, texts)),
        routes=routes,
        seed=options.seed,
    )
    template = None
    if options.apply_chat_template:
        require_template(tokenizer, engine.facts.id)
        template = model.apply_chat_template
    loaded = load_tasks(list(tasks), options, template)
    total = loaded.requests
    outcome = _run_tasks(model, loaded, options)
    if routes is not None and (trace := routes.trace()) is not None:
        trace.save(scored_trace_path(cache_folder, engine.facts.fingerprint))
    decode = prefill = None
    if texts := rolling_texts(outcome):
        tokens = _divergence_tokens(model, texts)
        decode = diverge(engine, tokens, cache_folder, "decode", reference=reference)
        prefill = watch.result(tokens) or diverge(
            engine, tokens, cache_folder, "prefill", reference=reference
        )
    results = task_results(outcome, loaded.tasks)
    rolling = [r.value for r in results if r.metric == BITS_PER_BYTE and not r.group]
    report = QualityReport(
        tasks=results,
        bits_per_byte=sum(rolling) / len(rolling) if rolling else None,
        kld_mean=decode.kld_mean if decode else None,
        top1_agreement=decode.top1_agreement if decode else None,
        seconds=time.perf_counter() - started,
        engine_tokens=model.scored_tokens,
        prefill_kld_mean=prefill.kld_mean if prefill else None,
        prefill_top1_agreement=prefill.top1_agreement if prefill else None,
        items=task_items(outcome),
        cut_texts=model.cut_texts,
    )
    _refuse_nan(report)
    return report


def _run_tasks(model: Any, loaded: LoadedTasks, options: TaskOptions) -> Any:
    """lm-eval's own outcome, after all random generators were seeded."""
    from lm_eval.evaluator import evaluate as run_lm_eval

    from engine.evaluate.task_code import explained
    from engine.evaluate.tasks import nothing_remembered, seed_generators

    seed_generators(options.seed)
    with (
        nothing_remembered(),
        explained(
            f"the tasks {', '.join(loaded.tasks)} cannot be scored",
            "mend their metrics, filters or process_results",
            local=True,
            only_theirs=True,
        ),
    ):
        return run_lm_eval(
            model,
            {"tasks": loaded.tasks, "groups": loaded.groups},
            limit=options.limit,
            bootstrap_iters=BOOTSTRAP_ROUNDS,
            apply_chat_template=options.apply_chat_template,
            fewshot_as_multiturn=options.fewshot_as_multiturn,
            log_samples=True,
        )


def _divergence_tokens(model: Any, texts: Sequence[str]) -> list[int]:
    """The first tokens of the first text that is long enough, as scoring feeds them to the
    model; of all texts joined if none is."""
    capacity = min(TOKENS, model.max_length - 1)
    for text in (*texts, "\n\n".join(texts)):
        tokens = [model.prefix_token_id, *model.tok_encode(text)][:capacity]
        if len(tokens) == capacity:
            break
    return tokens


class _PrefillWatch:
    """Takes the divergence in prefill mode from the pass that scores its text anyway."""

    def __init__(self, engine: Engine, cache_folder: Path, reference: bool) -> None:
        self._engine = engine
        self._cache_folder = cache_folder
        self._reference = reference
        self._tokens: list[int] = []
        self._reader: Reader | None = None

    def open(self, tokens: list[int]) -> Observer | None:
        """An observer that reads these tokens as they are scored; None if there is no reference
        or if they are scored token by token."""
        if self._engine.live.config.kv.keep_fraction != 1:
            return None
        self._tokens = tokens
        self._reader = open_reader(
            self._engine, tokens, self._cache_folder, "prefill", reference=self._reference
        )
        return Observer(tuple(tokens), self._reader.read) if self._reader else None

    def result(self, tokens: list[int]) -> Divergence | None:
        """The divergence on these tokens; None if they were not read completely."""
        if self._reader is None:
            return None
        found = self._reader.finish()
        return found if tokens == self._tokens else None


def _refuse_nan(report: QualityReport) -> None:
    figures = {f"{result.task} {result.metric}": result.value for result in report.tasks}
    figures["the divergence from 16 bits"] = report.kld_mean or 0.0
    figures["the divergence from 16 bits in prefill"] = report.prefill_kld_mean or 0.0
    for name, value in figures.items():
        if math.isnan(value):
            raise EvaluationError(
                f"{name} is NaN: the logits were no numbers, or the task has nothing to count; "
                "use compute.dtype=float32, or look at the task's data"
            )
