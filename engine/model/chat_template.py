"""Renders conversations by a tokenizer's chat template, in a process with limits.

A template is code of the checkpoint: a loop in a loop takes hours, and a text doubled forty times
all memory. Jinja's sandbox bounds neither. Trusted code that brings its own way of rendering is
called as it is.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from engine.model.template_process import FAILURES

# Without torch, and without a pool of threads, whose stacks would count as memory.
_ENVIRONMENT = {"USE_TORCH": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class TemplateFailedError(Exception):
    """A chat template refused a conversation, failed, or exceeded its limits."""


class TemplateRenderer:
    """One process that renders templates, begun when the first one is; again after one that it did
    not survive. Ends with this object. Any thread may render, one at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._end: Any = None
        self._lock = threading.Lock()

    def render(self, tokenizer: Any, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """The text of a conversation; raises TemplateFailedError.

        options: as of apply_chat_template. The text holds the template's special tokens: tokenize
        it with add_special_tokens=False.
        """
        if getattr(type(tokenizer), "apply_chat_template", None) != _RENDERED_HERE:
            try:
                return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
            except FAILURES as error:
                raise TemplateFailedError(str(error)) from None
        try:
            template = tokenizer.get_chat_template()
        except (ValueError, TypeError) as error:  # several, and none of them is the default
            raise TemplateFailedError(str(error)[:1000]) from None
        asked = {
            "template": template,
            "messages": messages,
            "options": {**tokenizer.special_tokens_map, **options},
        }
        with self._lock:
            answer = self._ask(json.dumps(asked))
        if "text" not in answer:
            raise TemplateFailedError(answer["error"])
        return answer["text"]

    def close(self) -> None:
        """End the process, if there is one."""
        if self._end is not None:
            self._end()
        self._process = self._end = None

    def _ask(self, line: str) -> dict[str, str]:
        """The process's answer, or how it died of the question."""
        if self._process is None:
            self._process = _start()
            self._end = weakref.finalize(self, _stop, self._process)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return dict(json.loads(answer))
        code = self._process.wait()
        self.close()
        how = "more time than any template needs" if code == -signal.SIGXCPU else f"exit {code}"
        return {"error": f"its process ended: {how}"}


_RENDERED_HERE = PreTrainedTokenizerBase.apply_chat_template


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "engine.model.template_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        env={**os.environ, **_ENVIRONMENT},
        start_new_session=True,  # Ctrl-C is for the program that asks
    )


def _stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
