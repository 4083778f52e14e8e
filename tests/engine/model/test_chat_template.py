"""Chat templates are code of the checkpoint: what they may take, and that nothing else changes."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from engine.model.chat_template import TemplateFailedError, TemplateRenderer

CHAT = [{"role": "system", "content": "Be brief \ud83d."}, {"role": "user", "content": "What?\n"}]
LOOPS = "{% for a in range(99999) %}" * 3 + "x" + "{% endfor %}" * 3
DOUBLED = (
    "{% set n = namespace(s='xxxxxxxxxx') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}"
    "{% endfor %}"
)


@pytest.fixture(scope="module")
def renderer() -> Iterator[TemplateRenderer]:
    made = TemplateRenderer()
    yield made
    made.close()


@pytest.fixture
def tokenizer(tiny_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.mark.parametrize(
    "template",
    [
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        "{{ messages | tojson(indent=1) }}{{ strftime_now('%Y') }}{{ mood }}",
        "{% generation %}{{ messages[1].content }}{% endgeneration %}{% set n = namespace(a=1) %}",
    ],
)
def test_a_text_is_what_transformers_renders(
    renderer: TemplateRenderer, tokenizer: Any, template: str
) -> None:
    tokenizer.chat_template = template
    options = {"add_generation_prompt": True, "mood": "good"}
    expected = tokenizer.apply_chat_template(CHAT, tokenize=False, **options)
    assert renderer.render(tokenizer, CHAT, **options) == expected


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (LOOPS, "more time than any template needs"),
        ("{{ 7 ** (7 ** 9) }}", "more time than any template needs"),
        # First touch of a gigabyte may take longer than the limit of time.
        (DOUBLED, "takes more than 1024 MiB of memory|more time than any template needs"),
        ("{{ 'x' * 10**10 }}", "takes more than 1024 MiB of memory"),
        ("{{ 'x' | center(10**10) }}", "takes more than 1024 MiB of memory"),
        ("{{ 'x' * (34 * 10**6) }}", "text has more than 33554432 characters"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "recursion"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ raise_exception('no system turn') }}", "no system turn"),
    ],
)
def test_a_template_without_an_end_is_one_error_and_the_next_one_is_rendered(
    renderer: TemplateRenderer, tokenizer: Any, template: str, says: str
) -> None:
    tokenizer.chat_template = template
    with pytest.raises(TemplateFailedError, match=says):
        renderer.render(tokenizer, CHAT)
    tokenizer.chat_template = "{{ messages[1].content }}"
    assert renderer.render(tokenizer, CHAT) == "What?\n"


@pytest.mark.parametrize("names", [("a", "b"), ("a", 1), ("a" * 9000, "b")])
def test_several_templates_of_which_none_is_the_default_are_one_short_error(
    renderer: TemplateRenderer, tokenizer: Any, names: tuple[Any, ...]
) -> None:
    tokenizer.chat_template = dict.fromkeys(names, "x")
    with pytest.raises(TemplateFailedError) as caught:
        renderer.render(tokenizer, CHAT)
    assert 0 < len(str(caught.value)) <= 1000


def test_the_process_ends_with_its_renderer(tokenizer: Any) -> None:
    own = TemplateRenderer()
    own.render(tokenizer, CHAT)
    assert own._process is not None
    pid = own._process.pid
    del own
    gc.collect()
    for _ in range(100):
        if not psutil.pid_exists(pid):
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} is left")


class _OwnWay(PreTrainedTokenizerFast):
    def apply_chat_template(self, conversation: Any, **_: Any) -> str:
        return f"{len(conversation)} turns"


def test_code_that_brings_its_own_way_of_rendering_is_called(
    renderer: TemplateRenderer, tiny_folder: Path
) -> None:
    own = _OwnWay.from_pretrained(tiny_folder)
    assert renderer.render(own, CHAT) == "2 turns"
