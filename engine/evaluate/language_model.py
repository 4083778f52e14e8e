"""lm-eval's language model interface over a configured engine.

Texts are tokenized exactly as in lm-eval's own model for transformers, so that scores compare.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import torch
from lm_eval import utils as lm_eval_utils
from lm_eval.api.model import TemplateLM

from engine.errors import EvaluationError, TaskError
from engine.evaluate.journal import Journal, request_key
from engine.evaluate.routes import RouteRecorder
from engine.evaluate.scoring import Continuation, Observer, Score, score
from engine.run.engine import Engine
from engine.run.generate import end_tokens, generate
from engine.run.sampling import SamplingOptions

_DEFAULT_NEW_TOKENS = 256


class EngineLanguageModel(TemplateLM):  # type: ignore[misc]
    """Tokenizes with the model's tokenizer, scores and generates with the engine.

    on_done: called with the number of requests just finished; journal: holds earlier results and
    keeps those of every finished group; observe: called once with the texts that are scored whole,
    returns the observer of one of them; routes: records the routing of scored texts.
    """

    backend = "causal"

    def __init__(
        self,
        engine: Engine,
        tokenizer: Any,
        on_done: Callable[[int], None] | None = None,
        journal: Journal | None = None,
        observe: Callable[[Sequence[str]], Observer | None] | None = None,
        routes: RouteRecorder | None = None,
    ) -> None:
        super().__init__()
        self._engine = engine
        # a layer-wise pass replaces the engine's config meanwhile
        self._config = engine.live.config
        self.tokenizer = tokenizer
        self._on_done = on_done
        self._journal = journal
        self._observe = observe
        self._observer: Observer | None = None
        self._routes = routes
        self.scored_tokens = 0
        self._device = torch.device("cpu")
        prefix = (
            tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        )
        self._prefix_text = "" if prefix is None else str(tokenizer.decode([prefix]))

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token: the tokenizer's, else the checkpoint's."""
        eos = self.tokenizer.eos_token_id
        ends = sorted(end_tokens(self._engine)) if eos is None else [eos]
        if not ends:
            raise TaskError(
                f"the tokenizer of {self._engine.facts.id} has no token that begins or ends a "
                "text, which scoring needs: set bos_token or eos_token in its tokenizer_config.json"
            )
        return int(ends[0])

    @property
    def prefix_token_id(self) -> int:
        """The token that replaces an empty context: BOS if the model has one."""
        bos = self.tokenizer.bos_token_id
        return int(bos) if bos is not None else self.eot_token_id

    @property
    def max_length(self) -> int:
        """The number of tokens that fit the model and this configuration's KV memory."""
        assert self._engine.config is not None
        capacity = self._engine.config.kv.max_tokens
        positions = self._engine.facts.max_positions
        return min(capacity, positions) if positions else capacity

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in lm-eval's request cache."""
        return self._engine.facts.id.replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render with the model's own template; without the system's turn if the template
        refuses one."""
        options = {
            "tokenize": False,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        try:
            return str(self.tokenizer.apply_chat_template(chat_history, **options))
        except jinja2.exceptions.TemplateError:
            turns = [turn for turn in chat_history if turn["role"] != "system"]
            return str(self.tokenizer.apply_chat_template(turns, **options))

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids of a text.

        By default, special tokens are added as the tokenizer itself does, but none if the text
        already begins with the prefix token, as chat templates write it.
        """
        options: dict[str, Any] = {}
        if add_special_tokens is not None:
            options["add_special_tokens"] = add_special_tokens
        elif self._prefix_text and string.startswith(self._prefix_text):
            options["add_special_tokens"] = False
        return list(self.tokenizer(string, **options)["input_ids"])

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of continuations after contexts; TaskError for an empty continuation."""
        for request in requests:
            if not request.args[1]:
                raise _empty_text(request)
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
                raise _empty_text(request)
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
        """Greedy (or seeded) generation up to a stop string."""
        outputs = []
        for request in requests:
            context, options = request.args
            stops = options.get("until") or []
            stops = [stops] if isinstance(stops, str) else list(stops)
            wanted = int(options.get("max_gen_toks", _DEFAULT_NEW_TOKENS))
            capacity = max(1, min(wanted, self.max_length - 1))
            ids = self.tok_encode(context)[-(self.max_length - capacity) :]
            sampled = options.get("do_sample", False)
            temperature = float(options.get("temperature", 0.0)) if sampled else 0.0
            outputs.append(self._generated(ids, capacity, temperature, stops))
            self._done(1)
        return outputs

    def _generated(
        self, ids: list[int], capacity: int, temperature: float, stops: Sequence[str]
    ) -> str:
        key = request_key("generate", ids, capacity, temperature, sorted(stops))
        known = self._journal.get(key) if self._journal else None
        if known is not None:
            return str(known)
        result = generate(
            self._engine,
            self.tokenizer,
            ids,
            max_tokens=capacity,
            sampling=SamplingOptions(temperature=temperature),
            stop=stops,
        )
        self.scored_tokens += len(ids) + len(result.tokens)
        if self._journal is not None:
            self._journal.add({key: result.text})
        return result.text

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
        context = context or [self.prefix_token_id]
        capacity = max(1, longest + 1 - len(target))
        return Continuation(tuple(context[-capacity:]), tuple(target[:longest]))

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


def _empty_text(request: Any) -> TaskError:
    name = getattr(request, "task_name", None) or "a task"
    return TaskError(
        f"{name}, item {getattr(request, 'doc_id', '?')}, asks to score an empty text: mend its "
        "YAML or its data"
    )
