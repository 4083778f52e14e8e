"""`python -m engine.model.template_process`: renders chat templates, one a line, within limits.

In: JSON lines of a template, a conversation and what else the template sees. Out: JSON lines of the
text, or of what the template raised. A template that takes more of the processor than MOST_S ends
the process; more memory than MOST_BYTES is an error like any other.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

MOST_S = 2  # of the processor; templates in use take milliseconds
MOST_BYTES = 1 << 30
MOST_CHARACTERS = 32 << 20  # of the text; a prompt of a million tokens has some 5 million
# What code in a template that the checkpoint brings can raise.
FAILURES = (
    jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError,
    TypeError, ValueError, AssertionError, SyntaxError,
)  # fmt: skip


def main() -> None:
    """Answer until stdin ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        until_s = math.ceil(time.process_time()) + MOST_S
        resource.setrlimit(resource.RLIMIT_CPU, (until_s, resource.RLIM_INFINITY))
        sys.stdout.write(json.dumps(_answer(json.loads(line))) + "\n")
        sys.stdout.flush()


def _answer(asked: dict[str, Any]) -> dict[str, str]:
    try:
        texts, _ = render_jinja_template(
            conversations=[asked["messages"]], chat_template=asked["template"], **asked["options"]
        )
        if len(texts[0]) > MOST_CHARACTERS:
            return {"error": f"its text has more than {MOST_CHARACTERS} characters"}
        return {"text": texts[0]}
    except MemoryError:
        return {"error": f"it takes more than {MOST_BYTES >> 20} MiB of memory"}
    except FAILURES as error:
        return {"error": str(error)[:1000] or type(error).__name__}


if __name__ == "__main__":
    main()
