"""The half of lm-eval's language model interface that needs only a tokenizer.

Texts are tokenized exactly as in lm-eval's own model for transformers, so that scores compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from lm_eval.api.model import TemplateLM

from engine.errors import TaskError
from engine.model.chat_template import TemplateFailedError, TemplateRenderer
from engine.model.tokenizer import encode


class TextModel(TemplateLM):  # type: ignore[misc]
    """Reads texts. model: its id, for messages; ends: the checkpoint's end tokens, asked only if
    the tokenizer names none."""

    backend = "causal"

    def __init__(self, tokenizer: Any, model: str, ends: Callable[[], Iterable[int]]) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self._model = model
        self._ends = ends
        self._renderer = TemplateRenderer()
        prefix = (
            tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        )
        self._prefix_text = "" if prefix is None else str(tokenizer.decode([prefix]))

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token: the tokenizer's, else the checkpoint's."""
        eos = self.tokenizer.eos_token_id
        ends = sorted(self._ends()) if eos is None else [eos]
        if not ends:
            raise TaskError(
                f"the tokenizer of {self._model} has no token that begins or ends a "
                "text, which scoring needs: set bos_token or eos_token in its tokenizer_config.json"
            )
        return int(ends[0])

    @property
    def prefix_token_id(self) -> int:
        """The token that replaces an empty context: BOS if the model has one."""
        bos = self.tokenizer.bos_token_id
        return int(bos) if bos is not None else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in lm-eval's request cache."""
        return self._model.replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render with the model's own template; without the system's turn if the template
        refuses one."""
        options = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        try:
            return self._renderer.render(self.tokenizer, chat_history, **options)
        except TemplateFailedError:
            turns = [turn for turn in chat_history if turn["role"] != "system"]
        try:
            return self._renderer.render(self.tokenizer, turns, **options)
        except TemplateFailedError as error:
            raise TaskError(
                f"the chat template of {self._model} cannot be used ({error}): leave out "
                "quality.apply_chat_template, or mend chat_template.jinja beside its config.json"
            ) from None

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
        return encode(self.tokenizer, string, **options)
