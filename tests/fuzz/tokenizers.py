"""Targets: what a model's folder holds for reading texts: tokenizer files and chat templates.

A `tokenizer` input is a JSON object of file names and what they hold; a `chat_template` input is a
JSON object: config (of tokenizer_config.json), jinja (a file of its own), and kwargs of a request.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

from hypothesis import strategies as st
from pydantic import ValidationError

from engine.model import chat_template, tokenizer
from engine.run.detokenize import TextPieces
from engine.serve.batching.token_texts import TokenTexts
from engine.serve.openai.errors import ApiError
from engine.serve.openai.requests import ChatRequest
from engine.serve.openai.tokenization import PromptReader, ServedModel
from tests.fuzz.documents import Pairs, read_json, write_bytes
from tests.fuzz.oracle import Arena, FindingError, Run
from tests.fuzz.target import Shape, Target

ROOM = 64  # tokens of prompt and answer
TEXT = "ab  a\u00e9\ud83d\ude00<s>b\n</s> \u2028 0xB".encode("utf-16", "surrogatepass").decode(
    "utf-16"
)
SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
ADDED = [
    {"id": 0, "content": "<s>", "special": True, **SPECIAL},
    {"id": 1, "content": "</s>", "special": True, **SPECIAL},
]
AROUND = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BPE = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": ADDED,
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}|[^\\s]+|\\s+"},
             "behavior": "Isolated", "invert": False},
            {**BYTES, "use_regex": False},
        ],
    },
    "post_processor": AROUND, "decoder": BYTES,
    "model": {
        "type": "BPE", "dropout": None, "unk_token": "<s>", "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": False, "merges": [["a", "b"], ["ab", "\u0120"]],
        "vocab": {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "\u0120": 4, "ab": 5, "ab\u0120": 6},
    },
}  # fmt: skip
UNIGRAM = {
    "version": "1.0", "truncation": {"direction": "Right", "max_length": 16,
                                     "strategy": "LongestFirst", "stride": 0},
    "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None,
                "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"},
    "added_tokens": ADDED,
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "StripAccents"},
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        ],
    },
    "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first",
                      "split": True},
    "post_processor": None,
    "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": True,
              "vocab": [["<s>", 0.0], ["</s>", 0.0], ["\u2581a", -1.5], ["b", -2.0],
                        ["<0x0A>", -9.0], ["a", -3.5]]},
}  # fmt: skip
CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
    "model_max_length": 512, "clean_up_tokenization_spaces": False, "add_bos_token": True,
    "auto_map": {"AutoProcessor": "a.B"},
    "additional_special_tokens": ["<x>"], "legacy": True, "extra_special_tokens": {},
    "added_tokens_decoder": {
        str(one["id"]): {key: value for key, value in one.items() if key != "id"} for one in ADDED
    },
    "chat_template": "{% for m in messages %}{{ m['content'] }}\n{% endfor %}",
}  # fmt: skip
SPECIALS = {"bos_token": {"content": "<s>", **SPECIAL}, "eos_token": "</s>", "unk_token": "<s>"}
FOLDERS = (
    {
        "tokenizer.json": BPE, "tokenizer_config.json": CONFIG,
        "special_tokens_map.json": SPECIALS, "added_tokens.json": {"<y>": 9},
    },
    {"tokenizer.json": UNIGRAM, "tokenizer_config.json": {**CONFIG, "use_fast": True}},
    {
        "vocab.json": {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4}, "merges.txt": "a b\n",
        "tokenizer_config.json": {**CONFIG, "tokenizer_class": "GPT2Tokenizer"},
    },
)  # fmt: skip
NAMES = (*tokenizer.FILES, *tokenizer._BESIDE)
CLASSES = (
    Pairs([["type", "Precompiled"], ["precompiled_charsmap", "AAQAAAAAAAAAAAAA"]]),
    "LlamaTokenizer", "LlamaTokenizerFast", "GPT2Tokenizer", "T5Tokenizer", "BertTokenizer",
    "Qwen2Tokenizer", "PreTrainedTokenizer", "TokenizersBackend", "MistralCommonBackend", "OwnOne",
    "ByteLevel", "Metaspace", "WordPiece", "WordLevel", "Unigram", "BPE", "Regex", "String",
    "(a+)+$", "(", "\\p{L", "MergedWithNext", "CTC", "BertProcessing", "Lowercase", "Strip",
)  # fmt: skip


def read_texts(folder: Path) -> None:
    """Load the tokenizer of a folder, and use it as an engine and a server do."""
    tokenizer.has_tokenizer(folder)
    tokenizer.has_chat_template(folder)
    found = tokenizer.load_tokenizer(folder, "m", trust_remote_code=False)
    ids = tokenizer.encode_enough(found, TEXT, ROOM)
    pieces, texts = TextPieces(found), TokenTexts(found)
    for token in (*ids[:ROOM], 0, 1, 299):
        texts.alternative(token, pieces.would_be(token), -1.0)
        pieces.push(token)
    pieces.finish()


@contextlib.contextmanager
def _tokenizer(place: Arena) -> Iterator[Run]:
    folder = place.given / "model"
    folder.mkdir(exist_ok=True)

    def run(data: bytes) -> None:
        for path in folder.iterdir():
            path.unlink()
        try:
            files = json.loads(data).items()
            for name, value in files:
                if name in NAMES:
                    text = value if isinstance(value, str) else json.dumps(value)
                    (folder / name).write_text(text, encoding="utf-8")
        except (ValueError, AttributeError, RecursionError):  # one file of these bytes
            (folder / "tokenizer.json").write_bytes(data)
        read_texts(folder)

    yield run


@contextlib.contextmanager
def _template(place: Arena) -> Iterator[Run]:
    folder = place.given / "model"
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(BPE), encoding="utf-8")
    renderer = chat_template.TemplateRenderer()
    served = ServedModel("m", ROOM, 300, 1)

    def begin() -> None:
        """The process of templates, apart from what a target may start."""
        if renderer._process is None:
            starting = threading.Thread(target=lambda: renderer._ask('{"messages": 0}'))
            starting.start()
            starting.join()

    def run(data: bytes) -> None:
        try:
            found = json.loads(data)
            wanted, own = found["config"], found["jinja"]
            kwargs = found["kwargs"] if isinstance(found["kwargs"], dict) else {}
        except (ValueError, TypeError, KeyError, RecursionError):  # a file of these bytes
            wanted, own, kwargs = None, data, {}
        config = {**CONFIG, "chat_template": wanted}
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        jinja = folder / "chat_template.jinja"
        jinja.unlink(missing_ok=True)
        if isinstance(own, str | bytes):
            jinja.write_bytes(own if isinstance(own, bytes) else own.encode("utf-8", "replace"))
        tokenizer.has_chat_template(folder)
        read = tokenizer.load_tokenizer(folder, "m", trust_remote_code=False)
        begin()
        reader = PromptReader(served, read)
        reader._renderer = renderer
        try:
            asked = ChatRequest.model_validate({"messages": CHAT, "chat_template_kwargs": kwargs})
        except ValidationError:
            return
        try:
            reader.chat(asked)
        except ApiError as error:
            if error.status != 400:
                raise FindingError(f"{error.status}: {error}") from error
            raise

    begin()
    with contextlib.closing(renderer):
        yield run


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "a {{ b }} {% c %}"},
    {"role": "assistant", "content": None},
    {"role": "user", "content": [{"type": "text", "text": "b"}]},
]
PLAIN = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ m.content | trim }}"
    "{% elif loop.first %}{{ raise_exception('no system') }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ eos_token }}{% endif %}"
)
PIECES = (
    "{% for m in messages %}", "{% endfor %}", "{% for a in range(99999) %}", "{{ m.content }}",
    "{{ messages }}", "{{ messages | tojson(indent=10**9) }}", "{{ missing.x.y }}",
    "{{ missing() }}",
    "{% macro a(n) %}{{ a(n) }}{% endmacro %}{{ a(1) }}", "{{ raise_exception('no') }}",
    "{{ 1 / 0 }}",
    "{{ raise_exception('x' * 100000) }}", "{{ 'x' * 10**9 }}", "{{ 10**10**8 }}",
    "{{ [0] * 10**9 }}",
    "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ cycler.__init__.__globals__.os }}",
    "{% include 'a' %}", "{% extends 'a' %}", "{% import 'a' as b %}",
    "{% block a %}{% endblock %}",
    "{{ self.a() }}", "{{ '%999999999d' | format(1) }}", "{{ '{:>999999999}'.format(1) }}",
    "{{ strftime_now('%Y' * 9999) }}", "{{ strftime_now(1) }}", "{% break %}", "{% if %}",
    "{% else %}",
    "{% generation %}", "{% endgeneration %}", "{{ bos_token * 3 }}", "{{ messages[99].content }}",
    "{{ messages | map(attribute='a.b') | list }}", "{{ range(99999999) | list | length }}",
    "{{ messages.append(1) }}", "{{ lipsum(9999) }}", "{{ dict(a=messages) | pprint }}", "\x00",
    "{{ (" + "(" * 300, "{{ " + "not " * 3000 + "1 }}", "{{ " + "-" * 50_000 + "1 }}", "{#", "{{ 1",
    "{% raw %}", "{% call(x) y() %}", "{{ 'a'.encode() }}", "{{ loop }}", "{{ [] | first }}",
    "{% set messages = 1 %}", "{% filter upper %}", "{{ 9.9e400 | int }}", "{{ '9' * 5000 | int }}",
    "{{ ('9' * 5000) | int }}", "{% for x in messages recursive %}{{ loop(messages) }}{% endfor %}",
)  # fmt: skip


def templates() -> st.SearchStrategy[bytes]:
    """Templates made of pieces, in the config or in a file."""
    text = st.lists(st.sampled_from((*PIECES, PLAIN)), min_size=1, max_size=4).map("".join)

    def made(pair: tuple[str, bool]) -> bytes:
        one, file = pair
        found = Pairs([["config", None if file else one], ["jinja", one if file else None]])
        return write_bytes(Pairs([*found, ["kwargs", Pairs()]]))

    return st.tuples(text, st.booleans()).map(made)


def _template_seeds() -> list[bytes]:
    named = [
        {"name": "default", "template": PLAIN},
        {"name": "tool_use", "template": "{{ tools }}"},
    ]
    found = (
        {"config": PLAIN, "jinja": None, "kwargs": {"thinking": False, "tools": []}},
        {"config": named, "jinja": None, "kwargs": {}},
        {"config": None, "jinja": PLAIN, "kwargs": {"date": "today"}},
    )
    return [json.dumps(one).encode() for one in found]


JSON = Shape(read_json, write_bytes, extra=CLASSES)
TARGETS = (
    Target(
        "tokenizer", _tokenizer, lambda: [json.dumps(one).encode() for one in FOLDERS], JSON,
        cases=40,
    ),
    Target(
        "chat_template", _template, _template_seeds, Shape(read_json, write_bytes, extra=PIECES),
        allowed=(ApiError,), own=templates, cases=15, most_s=6,
    ),
)  # fmt: skip
