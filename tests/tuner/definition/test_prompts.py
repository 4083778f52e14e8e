"""Prompts as people write and download them."""

import json
import logging
from pathlib import Path

import pytest

from tuner.definition.prompts import MOST_PROMPTS, load_prompts
from tuner.errors import DefinitionError

SHAREGPT = [
    {
        "id": f"t{n}",
        "conversations": [
            {"from": "human", "value": f"Question {n}?"},
            {"from": "gpt", "value": f"Answer {n}."},
            {"from": "human", "value": "And then?"},
        ],
    }
    for n in range(3)
]
MESSAGES = {
    "messages": [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": t} for t in ("What is ", "a heap?")]},
        {"role": "assistant", "content": "A tree.", "tool_calls": None},
    ]
}  # fmt: skip
ODD = "An ellipsis\x85, a line\u2028and\u2029 a \ufeffmark, שלום \u202e, NUL \x00, \U0001f600"


def write(tmp_path: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("name", ["p.jsonl", "p.JSONL", "p.ndjson", "p.json"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_json_lines_keep_every_character(tmp_path: Path, name: str, encoding: str, end: str):
    # datalad/datalad#3523, huggingface/datasets#8241: raw U+2028 in a string, marks, CRLF
    rows = [{"prompt": ODD}, {"prompt": "plain"}]
    text = "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)
    assert load_prompts(write(tmp_path, name, text, encoding)) == ((ODD, "plain"), ())


def test_a_text_file_has_one_prompt_a_line_whatever_it_holds(tmp_path: Path):
    path = write(tmp_path, "p.txt", f"{ODD}\r\n\r\nsecond\r\n", "utf-8-sig")
    assert load_prompts(path) == ((ODD, "second"), ())


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["sharegpt.json", "sharegpt.jsonl"])
def test_sharegpt_is_read_as_it_was_downloaded(tmp_path: Path, name: str, indent: int | None):
    # vllm-project/guidellm#133, sgl-project/sglang#15057
    path = write(tmp_path, name, json.dumps(SHAREGPT, indent=indent))
    prompts, following = load_prompts(path)
    assert prompts == ("Question 0?", "Question 1?", "Question 2?")
    assert following == ("Answer 0.", "Answer 1.", "Answer 2.")


@pytest.mark.parametrize(
    "value",
    [
        [MESSAGES], [MESSAGES] * 2, MESSAGES, [MESSAGES["messages"]], MESSAGES["messages"],
        [{"custom_id": "1", "method": "POST", "body": {"model": "m", **MESSAGES}}],
        [{"prompt": MESSAGES["messages"]}], {"data": [MESSAGES], "version": 1},
    ],
)  # fmt: skip
@pytest.mark.parametrize("indent", [None, 1])
def test_arrays_of_messages_are_read(tmp_path: Path, value: object, indent: int | None):
    path = write(tmp_path, "m.json", json.dumps(value, indent=indent))
    prompts, following = load_prompts(path)
    assert set(prompts) == {"Be short.\n\nWhat is a heap?"}
    assert set(following) == {"A tree."}


@pytest.mark.parametrize(
    "value",
    [
        # axolotl-ai-cloud/axolotl#101: ShareGPT's dumps and their descendants
        [{"id": "a", "items": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}],
        [{"conversation": [{"user": "Q", "assistant": "A"}, {"user": "R", "assistant": "B"}]}],
        [{"conversation": [{"assistant": "A", "system": None, "human": "Q"}]}],
        # axolotl-ai-cloud/axolotl#879, tloen/alpaca-lora#55: Alpaca's and Dolly's rows
        [{"instruction": "Q", "input": "", "output": "A"}],
        [{"instruction": "Q", "context": None, "response": "A", "category": "qa"}],
        # the hub's datasets server
        {"features": [{"name": "x"}], "rows": [{"row": {"prompt": "Q", "continuation": "A"}}]},
    ],
)
def test_what_datasets_publish_is_read(tmp_path: Path, value: object):
    assert load_prompts(write(tmp_path, "p.json", json.dumps(value))) == (("Q",), ("A",))


def test_an_instruction_and_its_input_are_one_prompt(tmp_path: Path):
    row = json.dumps({"instruction": "Sort.", "input": "b a", "output": "a b"})
    assert load_prompts(write(tmp_path, "p.jsonl", row)) == (("Sort.\n\nb a",), ("a b",))


def test_one_json_text_is_one_prompt(tmp_path: Path):
    assert load_prompts(write(tmp_path, "p.json", '"hello"')) == (("hello",), ())


def test_a_table_by_tabs_may_hold_commas(tmp_path: Path):
    assert load_prompts(write(tmp_path, "p.tsv", "prompt\na, b\n")) == (("a, b",), ())


def test_an_array_of_texts_is_read(tmp_path: Path):
    assert load_prompts(write(tmp_path, "t.json", '["a", "b"]')) == (("a", "b"), ())


def test_conversations_without_a_question_are_left_out_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    none = [{"conversations": []}, {"conversations": [{"from": "gpt", "value": "Hi"}]}]
    path = write(tmp_path, "s.json", json.dumps([*none, *SHAREGPT]))
    with caplog.at_level(logging.WARNING):
        assert len(load_prompts(path)[0]) == 3
    assert "2 of 5 have no turn of the user" in caplog.text
    with pytest.raises(DefinitionError, match="no conversation has a turn of the user"):
        load_prompts(write(tmp_path, "n.json", json.dumps(none)))


def test_a_table_has_a_column_of_prompts(tmp_path: Path):
    text = 'id;Prompt;continuation\r\n1;"two\r\nlines; and ""quotes""";x\r\n\r\n2;b;y\r\n'
    path = write(tmp_path, "t.csv", text, "utf-8-sig")
    assert load_prompts(path) == (('two\r\nlines; and "quotes"', "b"), ("x", "y"))
    assert load_prompts(write(tmp_path, "t.tsv", "prompt\tid\na, b\t1\n")) == (("a, b",), ())


def test_lines_of_megabytes_are_read_whole(tmp_path: Path):
    long = "word " * 400_000
    for name, text in (("l.jsonl", json.dumps({"prompt": long})), ("l.csv", f"prompt\n{long}\n")):
        assert load_prompts(write(tmp_path, name, text)) == ((long,), ())


def test_a_download_of_many_is_cut_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = write(tmp_path, "many.txt", "again\n" * (MOST_PROMPTS + 5))
    with caplog.at_level(logging.WARNING):
        assert len(load_prompts(path)[0]) == MOST_PROMPTS
    assert f"the first {MOST_PROMPTS} of {MOST_PROMPTS + 5} prompts are used" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        # the number is the file's own, not that of the lines that are left
        ("p.jsonl", '{"prompt": "one"}\n\n\n{"prompt": "two"}\n{"prompt": \n', "line 5: each"),
        ("p.jsonl", '{"prompt": "\\ud83d"}\n', r"line 1 holds \\ud83d, half"),
        ("p.jsonl", '{"prompt": ""}\n', "line 1: the prompt is empty"),
        ("p.jsonl", '"a"\n5\n', "line 2: it must be JSON"),
        ("p.jsonl", "[" * 100_000, "readable JSON"),
        ("p.json", '[\n{"prompt": "a"},\n{"prompt"}\n]', "line 3, is not JSON"),
        ("p.json", '[{"prompt": "a"}, {"text": "b"}]', "item 2: .* its keys are text"),
        ("p.json", "null", "item 1: it must be JSON"),
        ("p.json", "5", "item 1: it must be JSON"),
        ("p.json", '[{"from": "human", "text": "a"}]', "a turn has its text under"),
        ("p.tsv", "prompt\tprompt\na\tb\n", "two columns `prompt`"),
        ("p.txt", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("p.json", '[{"messages": ["a"]}]', "item 1: a turn is"),
        ("p.json", '[{"messages": [{"role": "user", "content": 5}]}]', "content is text"),
        ("p.json", "[]", "is empty"),
        ("p.csv", "question,answer\na,b\n", "must name a column `prompt`"),
        ("p.csv", "prompt,id\na,1\nb, c,2\n", "line 3 has 3 cells and the header 2"),
        ("p.csv", 'prompt,id\n"a\n\nb",1\n"c" d,2\n', "line 5, cannot be read as CSV"),
        ("p.csv", "prompt,id\n,1\n", "line 2: the prompt is empty"),
        ("p.parquet", "PAR1", r"\.parquet is not read"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said_with_its_place(
    tmp_path: Path, name: str, text: str, says: str
):
    with pytest.raises(DefinitionError, match=says):
        load_prompts(write(tmp_path, name, text))
