"""Reads people's own prompts: JSON lines, JSON arrays (ShareGPT, messages), CSV, or lines of text.

In: a file as it was written or downloaded. Out: prompts and continuations. A text is kept exactly,
whatever Unicode it holds; what cannot be read is refused with the file's own line number.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from tuner.definition.text import join_surrogates, read_text, split_lines
from tuner.errors import DefinitionError

log = logging.getLogger(__name__)

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (".csv", ".tsv")
TEXT_SUFFIXES = (".txt", ".text", ".md", "")
MOST_PROMPTS = 1000  # a study runs fewer, and its YAML carries them all
CONVERSATIONS = ("messages", "conversations", "conversation", "items")
WRAPPERS = ("body", "row")  # a request of OpenAI's batch files, a row of the hub's datasets server
INPUTS, OUTPUTS = ("input", "context"), ("output", "response")  # beside an instruction
_SAYS = {"system": "system", "developer": "system", "user": "user", "human": "user"}
_ANSWERS = ("assistant", "gpt", "chatgpt", "model", "bot", "bing", "bard")
_SHAPE = (
    'must be JSON with a text under "prompt" (and maybe "continuation"), or a conversation under '
    '"messages" or "conversations"'
)


class Row(NamedTuple):
    """One prompt and the text that followed it, if the file has it."""

    prompt: str
    continuation: str | None = None


class Found(NamedTuple):
    """A value of the file and where it stands, such as `prompts.jsonl, line 5`."""

    place: str
    value: Any


def load_prompts(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read prompts and continuations; at most the first MOST_PROMPTS, which is logged.

    .jsonl, .ndjson and .json: `{"prompt": ..., "continuation": ...}`, conversations (the prompt is
    what comes before the first answer, which is the continuation), request bodies, or plain
    strings, in lines or in an array; .csv and .tsv: a column `prompt`; .txt: one a line.
    Continuations are () unless every prompt has one. Raises DefinitionError with one sentence.
    """
    suffix = path.suffix.lower()
    text = read_text(path)
    if suffix in JSON_SUFFIXES:
        rows = _rows_of_json(text, path)
    elif suffix in TABLE_SUFFIXES:
        rows = list(_rows_of_table(text, path))
    elif suffix in TEXT_SUFFIXES:
        rows = [Row(line) for line in split_lines(text) if line.strip()]
    else:
        raise DefinitionError(
            f"prompts file {path}: {suffix} is not read; give JSON lines (.jsonl, .ndjson), a JSON "
            "array (.json), a table with a column `prompt` (.csv, .tsv) or lines of text (.txt)"
        )
    if not rows:
        raise DefinitionError(f"prompts file {path} is empty: write at least one prompt")
    if len(rows) > MOST_PROMPTS:
        log.warning("%s: the first %d of %d prompts are used", path, MOST_PROMPTS, len(rows))
    rows = rows[:MOST_PROMPTS]
    following = tuple(row.continuation for row in rows if row.continuation)
    return tuple(row.prompt for row in rows), following if len(following) == len(rows) else ()


def _rows_of_json(text: str, path: Path) -> list[Row]:
    found = list(_whole(text, path) if _is_one_value(text, path) else _lines(text, path))
    rows = [row for one in found if (row := _row(one)) is not None]
    if found and not rows:
        raise DefinitionError(f"prompts file {path}: no conversation has a turn of the user")
    if left_out := len(found) - len(rows):
        log.warning("%s: %d of %d have no turn of the user, left out", path, left_out, len(found))
    return rows


def _is_one_value(text: str, path: Path) -> bool:
    """Whether the file is one JSON value, not one a line: whatever its name says, many are called
    .json and hold lines."""
    lines = [line for line in split_lines(text) if line.strip()]
    if len(lines) > 1 and _is_json(lines[0]):
        return False
    return path.suffix.lower() == ".json" or text.lstrip()[:1] == "["


def _whole(text: str, path: Path) -> Iterator[Found]:
    """The items of the file's one JSON value; a list of turns is one item."""
    value = _parse(text, str(path))
    if not isinstance(value, dict | list):
        value = [value]
    elif isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        if len(lists) > 1:  # such as `features` beside `rows`
            lists = [inner for inner in lists if inner and _is_row(inner[0])]
        one = _is_row(value) or len(lists) != 1
        value = [value] if one else lists[0]
    elif value and all(_is_turn(one) for one in value):
        value = [value]
    for number, one in enumerate(value, 1):
        yield Found(f"{path}, item {number}", one)


def _lines(text: str, path: Path) -> Iterator[Found]:
    """One JSON value a line."""
    for number, line in enumerate(split_lines(text), 1):
        if line.strip():
            place = f"{path}, line {number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                raise DefinitionError(f"{place}: each line {_SHAPE}") from None
            yield Found(place, value)


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DefinitionError(
            f"{place}, line {error.lineno}, is not JSON: {error.msg.lower()}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DefinitionError(f"{place} is not readable JSON: {error}") from None


def _row(found: Found) -> Row | None:
    """The prompt of one value; None for a conversation without a turn of the user."""
    place, value = found
    if isinstance(value, str):
        return Row(_text(value, place))
    if isinstance(value, list):
        return _of_conversation(value, place)
    if not isinstance(value, dict):
        raise DefinitionError(f"{place}: it {_SHAPE}")
    if isinstance(value.get("prompt"), str):
        return Row(_text(value["prompt"], place), _following(value.get("continuation"), place))
    for key in WRAPPERS:
        if isinstance(value.get(key), dict):
            return _row(Found(place, value[key]))
    for key in ("prompt", *CONVERSATIONS):
        if isinstance(value.get(key), list):
            return _of_conversation(value[key], place)
    if isinstance(value.get("instruction"), str):
        return _of_instruction(value, place)
    keys = ", ".join(map(str, value))
    raise DefinitionError(f"{place}: it {_SHAPE}; its keys are {keys[:80] or 'none'}")


def _of_instruction(value: dict[str, Any], place: str) -> Row:
    """Alpaca's and Dolly's rows: an instruction and maybe its input, then the output."""
    parts = [value["instruction"], *(value.get(key) for key in INPUTS)]
    asked = "\n\n".join(part for part in parts if isinstance(part, str) and part)
    following = next((value[key] for key in OUTPUTS if isinstance(value.get(key), str)), None)
    return Row(_text(asked, place), _following(following, place))


def _following(text: Any, place: str) -> str | None:
    return join_surrogates(text, place) if isinstance(text, str) and text else None


def _is_row(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return any(key in value for key in ("prompt", "instruction", *WRAPPERS, *CONVERSATIONS))


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and ("role" in value or "from" in value)


def _of_conversation(turns: Sequence[Any], place: str) -> Row | None:
    """System and user turns before the first answer are the prompt, the answer follows it."""
    before: list[str] = []
    asked = False
    for turn in chain.from_iterable(_split_exchange(turn) for turn in turns):
        if not _is_turn(turn):
            raise DefinitionError(
                f'{place}: a turn is {{"role": "user", "content": "..."}} or '
                f'{{"from": "human", "value": "..."}}, not {str(turn)[:40]!r}'
            )
        role = str(turn.get("role", turn.get("from"))).lower()
        text = _text_of_turn(turn, place)
        if role not in _SAYS:
            following = text if asked and role in _ANSWERS and text else None
            return Row("\n\n".join(before), following) if asked else None
        if text:
            before.append(text)
            asked = asked or _SAYS[role] == "user"
    return Row("\n\n".join(before)) if asked else None


def _split_exchange(turn: Any) -> list[Any]:
    """The turns of an entry such as `{"user": ..., "assistant": ...}`; any other as it is."""
    roles = (*_SAYS, *_ANSWERS)
    if not isinstance(turn, dict) or _is_turn(turn) or not set(turn) & set(roles):
        return [turn]
    return [{"role": role, "content": turn[role]} for role in roles if role in turn]


def _text_of_turn(turn: dict[str, Any], place: str) -> str:
    if not {"content", "value", "tool_calls", "function_call"} & set(turn):
        raise DefinitionError(
            f'{place}: a turn has its text under "content" or "value", not {", ".join(turn)[:40]}'
        )
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):  # OpenAI's content parts
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str))
    if content is None or content == "":
        return ""
    if not isinstance(content, str):
        raise DefinitionError(f"{place}: a turn's content is text, not {str(content)[:40]!r}")
    return join_surrogates(content, place)


def _rows_of_table(text: str, path: Path) -> Iterator[Row]:
    delimiter = _delimiter(text, path)
    csv.field_size_limit(max(len(text), csv.field_size_limit()))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    begin = 1
    try:
        header = next((cells for cells in reader if cells), [])
        names = [name.strip(' "').lower() for name in header]
        if names.count("prompt") != 1:
            found = "two columns" if "prompt" in names else "no column"
            raise DefinitionError(f"{path} has {found} `prompt` in its header: name one so")
        prompt = names.index("prompt")
        following = names.index("continuation") if "continuation" in names else -1
        begin = reader.line_num + 1
        for cells in reader:
            place, begin = f"{path}, line {begin}", reader.line_num + 1
            if not any(cells):
                continue
            if len(cells) != len(names):
                raise DefinitionError(
                    f"{place} has {len(cells)} cells and the header {len(names)}: put text that "
                    "holds the delimiter or a line break in double quotes"
                )
            after = _text(cells[following], place) if following >= 0 and cells[following] else None
            yield Row(_text(cells[prompt], place), after)
    except csv.Error as error:
        raise DefinitionError(f"{path}, line {begin}, cannot be read as CSV: {error}") from None


def _delimiter(text: str, path: Path) -> str:
    """The one with which the header has a column `prompt`."""
    header = split_lines(text.lstrip("\r\n"))[0]
    for delimiter in "\t,;" if path.suffix.lower() == ".tsv" else ",;\t":
        if "prompt" in (name.strip(' "').lower() for name in header.split(delimiter)):
            return delimiter
    raise DefinitionError(
        f"{path}: its first line must name a column `prompt` (and maybe `continuation`), it is "
        f"{header[:80]!r}"
    )


def _text(text: str, place: str) -> str:
    if not text:
        raise DefinitionError(f"{place}: the prompt is empty: write at least one word")
    return join_surrogates(text, place)
