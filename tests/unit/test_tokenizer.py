"""Text to tokens and back: Qwen2's published vectors, the older file layout, and files that aren't tokenizers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from text_fixtures import SHARED, qwen2_tokenizer, tiny_model, tiny_tokenizer, write_tiny

from qwench.errors import CheckpointError, RequestError
from qwench.text.tokenizer import Tokenizer, has_tokenizer


def vectors() -> list[dict[str, object]]:
    path = SHARED / "vectors.json"
    return json.loads(path.read_text()) if path.exists() else []


@pytest.mark.skipif(not vectors(), reason="needs ../shared/data/qwen2-tokenizer")
def test_published_vectors() -> None:
    tokenizer = qwen2_tokenizer()
    for vector in vectors():
        assert tokenizer.encode(vector["text"]) == vector["ids"]
        # NFC is not undone; nothing in the vectors is decomposed, so that they come back as they were.
        assert tokenizer.decode(vector["ids"]) == vector["text"]


def test_special_tokens_of_qwen2() -> None:
    tokenizer = qwen2_tokenizer()
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (151645, 151643)
    assert tokenizer.token_id("<|im_start|>") == 151644
    assert tokenizer.special_tokens == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    assert "im_start" in tokenizer.chat_template
    ids = tokenizer.encode("<|im_end|>Hello")
    assert ids == [151645, 9707]
    assert tokenizer.decode(ids) == "Hello"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_end|>Hello"
    plain = tokenizer.encode("<|im_end|>Hello", allow_special=False)
    assert 151645 not in plain and tokenizer.decode(plain) == "<|im_end|>Hello"


def test_vocab_and_merges(tmp_path: Path) -> None:
    tiny_model().save(str(tmp_path))
    assert has_tokenizer(tmp_path)
    older = Tokenizer(tmp_path)
    for text in ("hello hello 123", "🦙 don't", "\n\n  é", "<|im_start|>x"):
        assert older.encode(text) == tiny_tokenizer().encode(text)
        assert older.decode(older.encode(text), skip_special_tokens=False) == text


def test_qwen2_from_vocab_and_merges(tmp_path: Path) -> None:
    """The pre-tokenizer and normalizer that are built are those of the published tokenizer.json."""
    if not SHARED.exists():
        pytest.skip("needs ../shared/data/qwen2-tokenizer")
    model = json.loads((SHARED / "tokenizer.json").read_text())["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    tokenizer = Tokenizer(tmp_path)
    for vector in vectors():
        assert tokenizer.encode(vector["text"]) == vector["ids"]
    assert tokenizer.token_id("<|im_end|>") == 151645


def test_added_tokens_of_the_config(tmp_path: Path) -> None:
    added = {"265": {"content": "<tool_call>", "special": False}, "266": {"content": "<|box|>", "special": True}}
    tokenizer = Tokenizer(write_tiny(tmp_path, added_tokens_decoder=added))
    assert tokenizer.encode("<tool_call><|box|>") == [265, 266]
    assert tokenizer.decode([265, 266]) == "<tool_call>"
    wrong = {"999": {"content": "<tool_call>"}}
    with pytest.raises(CheckpointError, match="999"):
        Tokenizer(write_tiny(tmp_path, added_tokens_decoder=wrong))


def test_bos(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tiny(tmp_path, add_bos_token=True, bos_token="<|endoftext|>"))
    bos = tokenizer.token_id("<|endoftext|>")
    assert tokenizer.encode("hello")[0] == bos
    assert tokenizer.encode("<|endoftext|>hello").count(bos) == 1
    assert bos not in tokenizer.encode("hello", add_special_tokens=False)


def test_chat_template_sources(tmp_path: Path) -> None:
    write_tiny(tmp_path, chat_template=[{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}])
    assert Tokenizer(tmp_path).chat_template == {"default": "a", "tool_use": "b"}
    (tmp_path / "chat_template.jinja").write_text("file")
    assert Tokenizer(tmp_path).chat_template == "file"


def test_ids_beyond_the_vocabulary() -> None:
    assert tiny_tokenizer().token_bytes(99999) == b""
    assert tiny_tokenizer().decode([99999]) == ""


def test_half_a_surrogate_pair() -> None:
    with pytest.raises(RequestError, match="surrogate"):
        tiny_tokenizer().encode("a\ud800b")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer.json", "{", "isn't a tokenizer"),
        ("tokenizer.json", '{"model": {"type": "Unigram"}}', "isn't a tokenizer"),
        ("tokenizer_config.json", "[]", "not a JSON object"),
        ("tokenizer_config.json", "{", "can't be read"),
        ("tokenizer_config.json", '{"chat_template": 3}', "chat_template"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', "added_tokens_decoder"),
    ],
)
def test_malformed_files(tmp_path: Path, name: str, content: str, says: str) -> None:
    (write_tiny(tmp_path) / name).write_text(content)
    with pytest.raises(CheckpointError, match=says):
        Tokenizer(tmp_path)


def test_missing_and_foreign(tmp_path: Path) -> None:
    assert not has_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match=r"neither tokenizer.json nor vocab.json"):
        Tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("[]")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(CheckpointError, match="aren't a BPE vocabulary"):
        Tokenizer(tmp_path)
    write_tiny(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(data | {"decoder": None}))
    with pytest.raises(CheckpointError, match="byte-level"):
        Tokenizer(tmp_path)
