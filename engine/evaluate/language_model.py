"""lm-eval's language model interface over a configured engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval import utils as lm_eval_utils
from lm_eval.api.model import TemplateLM

from engine.errors import UsageError
from engine.evaluate.scoring import Continuation, score
from engine.run.engine import Engine
from engine.run.generate import end_tokens, generate
from engine.run.sampling import SamplingOptions

_DEFAULT_NEW_TOKENS = 256


class EngineLanguageModel(TemplateLM):  # type: ignore[misc]
    """Tokenizes with the model's tokenizer, scores and generates with the engine.

    on_done: told how many requests were just finished.
    """

    backend = "causal"

    def __init__(
        self, engine: Engine, tokenizer: Any, on_done: Callable[[int], None] | None = None
    ) -> None:
        super().__init__()
        self._engine = engine
        self.tokenizer = tokenizer
        self._on_done = on_done
        self.scored_tokens = 0
        self._device = torch.device("cpu")

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token, which also begins rolling windows."""
        ends = sorted(end_tokens(self._engine))
        return int(self.tokenizer.eos_token_id if not ends else ends[0])

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is replaced with: BOS where the model has one."""
        bos = self.tokenizer.bos_token_id
        return int(bos) if bos is not None else self.eot_token_id

    @property
    def max_length(self) -> int:
        """Tokens that fit the model and this configuration's KV memory."""
        assert self._engine.config is not None
        room = self._engine.config.kv.max_tokens
        positions = self._engine.facts.max_positions
        return min(room, positions) if positions else room

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in lm-eval's request cache."""
        return self._engine.facts.id.replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The model's own template."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids, without special tokens unless asked."""
        return list(
            self.tokenizer(string, add_special_tokens=bool(add_special_tokens))["input_ids"]
        )

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of whole texts, in windows that share no token."""
        owners: list[int] = []
        windows: list[tuple[None, list[int], list[int]]] = []
        for number, request in enumerate(requests):
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
        scored = self._loglikelihood_tokens(windows)
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
            room = max(1, min(wanted, self.max_length - 1))
            ids = self.tok_encode(context)[-(self.max_length - room) :]
            sampled = options.get("do_sample", False)
            temperature = float(options.get("temperature", 0.0)) if sampled else 0.0
            result = generate(
                self._engine,
                self.tokenizer,
                ids,
                max_tokens=room,
                sampling=SamplingOptions(temperature=temperature),
            )
            text = result.text
            for stop in filter(None, stops):
                text = text.split(stop)[0]
            outputs.append(text)
            self.scored_tokens += len(ids) + len(result.tokens)
            if self._on_done is not None:
                self._on_done(1)
        return outputs

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        longest = self.max_length
        continuations = []
        for _, context, target in requests:
            if not target:
                raise UsageError("a task asks to score an empty text: its YAML is wrong")
            context = context or [self.prefix_token_id]
            room = max(1, longest + 1 - len(target))
            continuations.append(Continuation(tuple(context[-room:]), tuple(target[:longest])))
        self.scored_tokens += sum(len(c.input) for c in continuations)
        return [
            (result.log_likelihood, result.greedy)
            for result in score(self._engine, continuations, self._on_done)
        ]
