"""lm-eval's language model interface over a configured engine."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lm_eval import utils as lm_eval_utils

from engine.errors import EvaluationError, TaskError
from engine.evaluate.check import empty_prompt, empty_text
from engine.evaluate.generation import GenerationSettings, read_generation
from engine.evaluate.journal import Journal, request_key
from engine.evaluate.routes import RouteRecorder
from engine.evaluate.scoring import Continuation, Observer, Score, score
from engine.evaluate.text_model import TextModel
from engine.files import short_digest
from engine.run.engine import Engine
from engine.run.generate import end_tokens, generate


class EngineLanguageModel(TextModel):
    """Tokenizes with the model's tokenizer, scores and generates with the engine.

    on_done: called with the number of requests just finished; journal: holds earlier results and
    keeps those of every finished group; observe: called once with the texts that are scored whole,
    returns the observer of one of them; routes: records the routing of scored texts; seed: of
    sampled answers. scored_tokens: tokens that the engine read or wrote; cut_texts: continuations
    whose context did not fit, so that its beginning was cut as lm-eval does.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Any,
        on_done: Callable[[int], None] | None = None,
        journal: Journal | None = None,
        observe: Callable[[Sequence[str]], Observer | None] | None = None,
        routes: RouteRecorder | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(tokenizer, engine.facts.id, lambda: end_tokens(engine))
        self._engine = engine
        # a layer-wise pass replaces the engine's config meanwhile
        self._config = engine.live.config
        self._on_done = on_done
        self._journal = journal
        self._observe = observe
        self._observer: Observer | None = None
        self._routes = routes
        self._seed = seed
        self.scored_tokens = 0
        self.cut_texts = 0
        self._device = torch.device("cpu")

    @property
    def max_length(self) -> int:
        """The number of tokens that fit the model and this configuration's KV memory."""
        assert self._engine.config is not None
        capacity = self._engine.config.kv.max_tokens
        positions = self._engine.facts.max_positions
        return min(capacity, positions) if positions else capacity

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of continuations after contexts; TaskError for an empty continuation."""
        for request in requests:
            if not request.args[1]:
                raise empty_text(request)
        found: list[tuple[float, bool]] = super().loglikelihood(list(requests), disable_tqdm=True)
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of whole texts, in windows that share no token."""
        if self._observe is not None and requests:
            self._observer = self._observe([request.args[0] for request in requests])
            self._observe = None
        owners: list[int] = []
        windows: list[tuple[None, list[int], list[int]]] = []
        for number, request in enumerate(requests):
            if not request.args[0]:
                raise empty_text(request)
            rolling = lm_eval_utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in rolling:
                context, target = lm_eval_utils.make_disjoint_window(window)
                owners.append(number)
                windows.append((None, context, target))
        totals = [0.0] * len(requests)
        waiting = Counter(owners)

        def on_window(numbers: Sequence[int]) -> None:
            for number in numbers:
                waiting[owners[number]] -= 1
            self._done(sum(not waiting[owner] for owner in {owners[n] for n in numbers}))

        scored = self._scored(windows, on_window)
        for owner, (log_likelihood, _) in zip(owners, scored, strict=True):
            totals[owner] += log_likelihood
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy or sampled generation up to a stop string.

        Repeats of one request are sampled with seeds of their own, which are the same in every run.
        Raises TaskError if a prompt and its answer do not fit: a prompt is never cut.
        """
        outputs = []
        repeats: Counter[int] = Counter()
        for request in requests:
            context, options = request.args
            name = getattr(request, "task_name", None) or "a task"
            settings = read_generation(options, name)
            ids = self.tok_encode(context)
            if not ids:
                raise empty_prompt(request)
            if len(ids) + settings.new_tokens > self.max_length:
                raise TaskError(
                    f"{name}: a prompt of {len(ids)} tokens and {settings.new_tokens} new ones "
                    f"(max_gen_toks) exceed the {self.max_length} that fit: raise kv.max_tokens, "
                    "or lower generation_kwargs.max_gen_toks"
                )
            seed = 0
            if settings.sampling.temperature:
                seed = _request_seed(self._seed, request, repeats[id(request)])
                repeats[id(request)] += 1
            outputs.append(self._generated(ids, settings, seed))
            self._done(1)
        return outputs

    def _generated(self, ids: list[int], settings: GenerationSettings, seed: int) -> str:
        sampling = replace(settings.sampling, seed=seed)
        key = request_key("generate", ids, settings.new_tokens, sampling, sorted(settings.until))
        known = self._journal.get(key) if self._journal else None
        if known is not None:
            return str(known)
        result = generate(
            self._engine,
            self.tokenizer,
            ids,
            max_tokens=settings.new_tokens,
            sampling=sampling,
            stop=settings.until,
            also_ends=self._special_tokens(settings.until),
        )
        self.scored_tokens += len(ids) + len(result.tokens)
        if self._journal is not None:
            self._journal.add({key: result.text})
        return result.text

    def _special_tokens(self, stops: Sequence[str]) -> frozenset[int]:
        """The stop strings that are special tokens, which never appear in decoded text."""
        special = self.tokenizer.all_special_ids
        ids = (self.tokenizer.convert_tokens_to_ids(stop) for stop in stops)
        return frozenset(one for one in ids if one in special)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        return self._scored(requests, lambda numbers: self._done(len(numbers)))

    def _scored(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        on_group: Callable[[Sequence[int]], None],
    ) -> list[tuple[float, bool]]:
        """Results in order. on_group: called with the indices of each finished group of inputs."""
        continuations = [self._continuation(context, target) for _, context, target in requests]
        keys = [request_key(one.context, one.target) for one in continuations]
        found: dict[int, tuple[float, bool]] = {}
        if self._journal is not None:
            for number, key in enumerate(keys):
                known = self._journal.get(key)
                if known is not None:
                    found[number] = (float(known[0]), bool(known[1]))
        if found:
            on_group(list(found))
        missing = [number for number in range(len(requests)) if number not in found]

        def on_scored(scores: Mapping[int, Score]) -> None:
            self._refuse_nan(scores)
            group = {
                missing[n]: (one.log_likelihood, one.greedy) for n, one in sorted(scores.items())
            }
            found.update(group)
            if self._journal is not None:
                self._journal.add({keys[number]: list(result) for number, result in group.items()})
            on_group(list(group))

        self.scored_tokens += sum(len(continuations[number].input) for number in missing)
        score(
            self._engine,
            [continuations[number] for number in missing],
            on_scored,
            observer=self._observer,
            routes=self._routes,
        )
        return [found[number] for number in range(len(requests))]

    def _continuation(self, context: list[int], target: list[int]) -> Continuation:
        if not target:
            raise TaskError("a task asks to score a text without tokens: mend its YAML or its data")
        longest = self.max_length
        if len(target) > longest:
            raise TaskError(
                f"a task asks to score a continuation of {len(target)} tokens, and {longest} fit: "
                "raise kv.max_tokens, or shorten the task's data"
            )
        context = context or [self.prefix_token_id]
        capacity = longest + 1 - len(target)
        self.cut_texts += len(context) > capacity
        return Continuation(tuple(context[-capacity:]), tuple(target))

    def _refuse_nan(self, scores: Mapping[int, Score]) -> None:
        bad = sum(math.isnan(one.log_likelihood) for one in scores.values())
        if not bad:
            return
        dtype = self._config.compute.dtype
        advice = (
            "`tune doctor` compares this model with plain transformers"
            if dtype == "float32"
            else "use compute.dtype=float32, or bfloat16 where float16 overflows"
        )
        raise EvaluationError(
            f"the logits became NaN on {bad} of {len(scores)} texts with compute.dtype={dtype}: "
            f"{advice}"
        )

    def _done(self, count: int) -> None:
        if self._on_done is not None and count:
            self._on_done(count)


def _request_seed(seed: int, request: Any, repeat: int) -> int:
    """A seed of its own for each repeat of each request, equal in every run and configuration."""
    parts = (seed, request.task_name, request.doc_id, request.idx, repeat)
    return int(short_digest(repr(parts), 15), 16)
