"""Tokenizers of checkpoints: files, code, or none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.errors import CheckpointError, ModelError, RemoteCodeError
from engine.model.tokenizer import brings_code, encode_enough, has_tokenizer, load_tokenizer

CODE = """
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast


class OwnTokenizer(PreTrainedTokenizerFast):
    vocab_files_names = {"own_file": "own.model"}

    def __init__(self, own_file=None, **options):
        options.pop("tokenizer_object", None)
        super().__init__(tokenizer_object=Tokenizer.from_file(str(own_file)), **options)
"""


@pytest.fixture
def copied(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.fixture
def with_code(copied: Path) -> Path:
    """As Moonlight and Kimi ship theirs: a file of its own and code (NVIDIA-NeMo/RL#3116)."""
    (copied / "tokenizer.json").rename(copied / "own.model")
    (copied / "tokenization_own.py").write_text(CODE)
    config = json.loads((copied / "tokenizer_config.json").read_text())
    own = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    config.update(tokenizer_class="OwnTokenizer", auto_map=own)
    (copied / "tokenizer_config.json").write_text(json.dumps(config))
    return copied


def test_a_tokenizer_of_files_is_loaded(copied: Path) -> None:
    assert has_tokenizer(copied)
    assert load_tokenizer(copied, "m", trust_remote_code=False)("a b")["input_ids"]


def test_a_tokenizer_of_code_is_loaded_when_code_is_allowed(
    with_code: Path, tiny_folder: Path
) -> None:
    plain = load_tokenizer(tiny_folder, "m", trust_remote_code=False)
    own = load_tokenizer(with_code, "m", trust_remote_code=True)
    assert has_tokenizer(with_code)
    assert own("the module")["input_ids"] == plain("the module")["input_ids"]


def test_code_that_was_not_allowed_is_refused(with_code: Path) -> None:
    with pytest.raises(RemoteCodeError, match="--trust-remote-code"):
        load_tokenizer(with_code, "m", trust_remote_code=False)


def test_none_is_said(copied: Path) -> None:
    (copied / "tokenizer.json").unlink()
    assert not has_tokenizer(copied)
    with pytest.raises(ModelError, match="m has no tokenizer"):
        load_tokenizer(copied, "m", trust_remote_code=False)


def test_a_pointer_and_a_broken_file_are_said(copied: Path) -> None:
    (copied / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        load_tokenizer(copied, "m", trust_remote_code=False)
    (copied / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="tokenizer of m cannot be loaded"):
        load_tokenizer(copied, "m", trust_remote_code=False)


BROKEN: list[tuple[str, dict[str, Any]]] = [
    # Rust panics while it is loaded, Rust panics when it is used, Python fails when it is used
    ("tokenizer.json", {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAQA"}}),
    (
        "tokenizer.json",
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<none>", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
                "special_tokens": {},
            }
        },
    ),
    ("tokenizer_config.json", {"model_max_length": "long"}),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "changes"), BROKEN)
def test_files_on_which_its_library_fails_or_panics_are_said(
    copied: Path, name: str, changes: dict[str, Any]
) -> None:
    found = json.loads((copied / name).read_text())
    (copied / name).write_text(json.dumps({**found, **changes}))
    with pytest.raises(ModelError, match=r"tokenizer of m cannot be loaded .*copy its files again"):
        load_tokenizer(copied, "m", trust_remote_code=False)


def test_a_text_on_which_its_library_fails_is_said(copied: Path) -> None:
    words = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<none>"}
    found = json.loads((copied / "tokenizer.json").read_text())
    found.update(model=words, pre_tokenizer={"type": "Whitespace"}, added_tokens=[])
    (copied / "tokenizer.json").write_text(json.dumps(found))
    made = load_tokenizer(copied, "m", trust_remote_code=False)
    assert encode_enough(made, "a a", 9) == [0, 0]
    for text in ("a b", "a\ud800"):
        with pytest.raises(ModelError, match="cannot read this text"):
            encode_enough(made, text, 9)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_and_a_full_memory_are_no_failures_of_a_tokenizer(
    kind: type[BaseException],
) -> None:
    def fails(*_: object) -> dict[str, list[int]]:
        raise kind

    with pytest.raises(kind):
        encode_enough(fails, "a", 9)


def test_an_auto_map_of_another_type_names_no_code(copied: Path) -> None:
    found = json.loads((copied / "tokenizer_config.json").read_text())
    (copied / "tokenizer_config.json").write_text(json.dumps({**found, "auto_map": 5}))
    assert not brings_code(copied)


@pytest.mark.parametrize(
    "name", ["chat_template.jinja", "special_tokens_map.json", "added_tokens.json"]
)
def test_pointers_beside_the_tokenizer_are_said(copied: Path, name: str) -> None:
    # a pointer as chat template would be what every conversation says (deepseek-ai/DeepSeek-V3#557)
    (copied / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\n")
    with pytest.raises(CheckpointError, match=rf"{name} is a pointer of git-lfs"):
        load_tokenizer(copied, "m", trust_remote_code=False)


def test_a_file_that_is_no_json_is_named(copied: Path) -> None:
    (copied / "special_tokens_map.json").write_text('{"eos_token": ')
    with pytest.raises(CheckpointError, match=r"special_tokens_map\.json cannot be read as JSON"):
        load_tokenizer(copied, "m", trust_remote_code=False)


def test_a_template_in_chat_template_json_is_used(copied: Path) -> None:
    # where processors kept it before chat_template.jinja
    template = (copied / "chat_template.jinja").read_text()
    (copied / "chat_template.jinja").unlink()
    (copied / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert load_tokenizer(copied, "m", trust_remote_code=False).chat_template == template


class _Counted:
    """A tokenizer of single characters that counts them."""

    def __init__(self, width: int = 1) -> None:
        self.width = width
        self.characters = 0

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        self.characters += len(text)
        return {"input_ids": [1] * (len(text) // self.width)}


@pytest.mark.parametrize("width", [1, 100])
def test_of_a_long_text_only_a_beginning_with_enough_tokens_is_tokenized(width: int) -> None:
    counted = _Counted(width)
    ids = encode_enough(counted, "x" * 10_000_000, 100)
    assert len(ids) > 100
    assert counted.characters < 4 * 100 * max(width, 16) + 10_000
    assert len(encode_enough(counted, "x" * 100 * width, 100)) == 100


def test_a_file_larger_than_any_tokenizer_is_not_read(copied: Path) -> None:
    with (copied / "tokenizer.json").open("ab") as file:
        file.truncate((64 << 20) + 1)  # sparse
    with pytest.raises(ModelError, match=r"tokenizer\.json is larger than 64 MiB"):
        load_tokenizer(copied, "m", trust_remote_code=False)
