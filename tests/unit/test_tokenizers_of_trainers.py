"""Tokenizers as training scripts leave them: what the newest transformers makes of their files, qwench makes too.

With the library alone and with compiled tables, encoding and decoding.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwench.checkpoint.tokenizer_tables import TABLES, write_tokenizer_tables
from qwench.errors import CheckpointError
from qwench.text.tokenizer import Tokenizer

DEFAULT_MODEL = Path(__file__).parents[2] / "models" / "qwench-tiny"
FILE = json.loads((DEFAULT_MODEL / "tokenizer.json").read_text())
CONFIG = json.loads((DEFAULT_MODEL / "tokenizer_config.json").read_text())
TEXTS = [
    "Once upon a time, 12 foxes ran.", "  a  b\n\n c\t", "<|im_start|>user\nhi<|im_end|>\n", " <|im_end|> x<|im_end|>y",
    "He\u0301llo caf\u00e9 \u4e16\u754c \U0001f98a", "don't DON'T", "", "a", "MASK MASKED <X> <X>s Foo foo",
]  # fmt: skip
CLASSES = [
    "Qwen2Tokenizer",
    "Qwen2TokenizerFast",
    "PreTrainedTokenizerFast",
    "LlamaTokenizerFast",
    "GPT2Tokenizer",
    None,
]
Change = Callable[[dict[str, Any], dict[str, Any]], Any]
NEWEST = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 23)  # older releases take the file as it is


def bos_template(file: dict[str, Any]) -> None:
    file["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "B", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"B": {"id": "B", "ids": [2045], "tokens": ["<|endoftext|>"]}},
    }


def pad_and_truncate(file: dict[str, Any], config: dict[str, Any]) -> None:
    file["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    file["padding"] = {
        "strategy": {"Fixed": 12}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 2045, "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }  # fmt: skip


def prefix_in_the_file(file: dict[str, Any], config: dict[str, Any]) -> None:
    for step in file["pre_tokenizer"]["pretokenizers"]:
        if step["type"] == "ByteLevel":
            step["add_prefix_space"] = True


def added(flags: dict[str, bool], *, in_config: bool) -> Change:
    def change(file: dict[str, Any], config: dict[str, Any]) -> None:
        for i, content in enumerate(("MASK", "<X>")):
            none = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
            token = {"content": content, **none, **flags}
            file["added_tokens"].append({"id": 2048 + i, **token})
            if in_config:
                config["added_tokens_decoder"][str(2048 + i)] = token
        if not in_config:
            del config["added_tokens_decoder"]

    return change


FLAG_SETS: list[dict[str, bool]] = [
    {}, {"special": True}, {"lstrip": True}, {"rstrip": True}, {"single_word": True}, {"normalized": True},
    {"special": True, "lstrip": True, "rstrip": True},
]  # fmt: skip
CHANGES: dict[str, Change] = {
    "as it is": lambda file, config: None,
    "truncation and padding": pad_and_truncate,
    "add_bos_token": lambda file, config: config.update(bos_token="<|endoftext|>", add_bos_token=True),
    "add_eos_token": lambda file, config: config.update(add_eos_token=True),
    "no normaliser": lambda file, config: file.update(normalizer=None),
    "another normaliser": lambda file, config: file.update(normalizer={"type": "Lowercase"}),
    "a post-processor": lambda file, config: bos_template(file),
    "split_special_tokens": lambda file, config: config.update(split_special_tokens=True),
    "add_prefix_space": lambda file, config: config.update(add_prefix_space=True),
    "add_prefix_space in the file": prefix_in_the_file,
    "extra special tokens": lambda file, config: config.update(extra_special_tokens=["Foo", "foo"]),
    "additional special tokens": lambda file, config: config.update(additional_special_tokens=["Foo", "<X>"]),
    "named special tokens": lambda file, config: config.update(extra_special_tokens={"image_token": "Foo"}),
    "clean_up_tokenization_spaces": lambda file, config: config.update(clean_up_tokenization_spaces=True),
    "ignore_merges": lambda file, config: file["model"].update(ignore_merges=True),
    "unk_token": lambda file, config: file["model"].update(unk_token="<|endoftext|>"),
    "dropout": lambda file, config: file["model"].update(dropout=0.5),
    **{f"added {flags}, {place}": added(flags, in_config=place == "config") for flags in FLAG_SETS
       for place in ("config", "file")},
}  # fmt: skip


def folder(path: Path, change: Change, tokenizer_class: str | None = "Qwen2Tokenizer") -> Path:
    file, config = copy.deepcopy(FILE), copy.deepcopy(CONFIG)
    change(file, config)
    config.pop("tokenizer_class")
    if tokenizer_class is not None:
        config["tokenizer_class"] = tokenizer_class
    (path / "tokenizer.json").write_text(json.dumps(file))
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    (path / "config.json").write_bytes((DEFAULT_MODEL / "config.json").read_bytes())
    return path


def compare(path: Path, texts: list[str]) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(path)
    for _ in range(2):  # without tables, with them
        ours = Tokenizer(path)
        for text in texts:
            for special in (True, False):
                ids = theirs(text, add_special_tokens=special).input_ids
                assert ours.encode(text, add_special_tokens=special) == ids, (text, special)
                for skip in (True, False):
                    assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
        write_tokenizer_tables(path)


@pytest.mark.skipif(not NEWEST, reason="older transformers read tokenizers otherwise")
@pytest.mark.parametrize("name", CHANGES)
def test_as_the_newest_transformers(tmp_path: Path, name: str) -> None:
    compare(folder(tmp_path, CHANGES[name]), TEXTS)


@pytest.mark.skipif(not NEWEST, reason="older transformers read tokenizers otherwise")
@pytest.mark.parametrize("tokenizer_class", CLASSES)
@pytest.mark.parametrize("name", ["as it is", "add_bos_token", "add_eos_token", "no normaliser", "a post-processor"])
def test_of_every_class(tmp_path: Path, tokenizer_class: str | None, name: str) -> None:
    compare(folder(tmp_path, CHANGES[name], tokenizer_class), TEXTS)


@pytest.mark.skipif(not NEWEST, reason="older transformers read tokenizers otherwise")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=15)
@given(
    names=st.lists(st.sampled_from(sorted(CHANGES)), min_size=2, max_size=3, unique=True),
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), max_size=8),
)
def test_several_changes_at_once(tmp_path_factory: pytest.TempPathFactory, names: list[str], texts: list[str]) -> None:
    if sum("added" in name for name in names) > 1 or {"a post-processor", "add_eos_token"} <= set(names):
        return

    def change(file: dict[str, Any], config: dict[str, Any]) -> None:
        for name in names:
            CHANGES[name](file, config)

    compare(folder(tmp_path_factory.mktemp("tokenizer"), change), [*texts, *TEXTS])


def test_tables_are_made_of_padded_tokenizers(tmp_path: Path) -> None:
    write_tokenizer_tables(folder(tmp_path, pad_and_truncate))
    assert (tmp_path / TABLES).exists()
    assert len(Tokenizer(tmp_path).encode("hi")) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file, config: file["model"].update(byte_fallback=True), "isn't a byte-level BPE"),
        (lambda file, config: file.update(model={"type": "WordPiece", "vocab": {}}), "its model is 'WordPiece'"),
        (lambda file, config: file["model"].pop("merges"), "isn't a tokenizer"),
        (lambda file, config: file["model"]["merges"].append("zz qq"), "isn't a tokenizer"),
        (lambda file, config: file.update(post_processor={"type": "What"}), "post_processor that can't be used"),
        (lambda file, config: file.update(added_tokens=[3]), "malformed"),
        (lambda file, config: config["added_tokens_decoder"].update({"9000": {"content": "far"}}), "the id 9000"),
    ],
)
def test_what_is_no_tokenizer_of_qwen2(tmp_path: Path, change: Change, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Tokenizer(folder(tmp_path, change)).encode("a")
