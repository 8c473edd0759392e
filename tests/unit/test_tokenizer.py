"""Text to tokens and back: Qwen2's published vectors, the older file layout, and files that aren't tokenizers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from text_fixtures import SHARED, qwen2_tokenizer, tiny_model, tiny_tokenizer, write_tiny

from qwench.checkpoint.tokenizer_files import has_tokenizer
from qwench.checkpoint.tokenizer_tables import TABLES, write_tokenizer_tables
from qwench.errors import ArtifactError, CheckpointError, RequestError
from qwench.text.tokenizer import Tokenizer


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


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Qwen2's tokenizer beside its compiled tables, as in an artifact."""
    qwen2_tokenizer()
    folder = tmp_path_factory.mktemp("compiled")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).symlink_to(SHARED / name)
    write_tokenizer_tables(folder)
    assert (folder / TABLES).exists()
    return Tokenizer(folder)


def test_compiled_tables_give_the_published_vectors(compiled: Tokenizer) -> None:
    for vector in vectors():
        assert compiled.encode(vector["text"]) == vector["ids"]
        assert compiled.decode(vector["ids"]) == vector["text"]
    assert "library" not in vars(compiled)  # none of this has read tokenizer.json


def test_compiled_tables_know_the_same_tokens(compiled: Tokenizer) -> None:
    full = qwen2_tokenizer()
    for token_id in range(151_700):
        assert compiled.token_bytes(token_id) == full.token_bytes(token_id)
    for token in ("<|im_end|>", "Ġhello", "é", "Ã©", "Ċ", "nothing like it", ""):
        assert compiled.token_id(token) == full.token_id(token)
    assert [i for i in range(152_000) if compiled.is_special(i)] == [151643, 151644, 151645]
    assert (compiled.eos_token_id, compiled.pad_token_id) == (full.eos_token_id, full.pad_token_id)


ALPHABET = st.one_of(
    st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n\t'sét1aeinrlo"), st.sampled_from(["e\u0301", "ﬁ"])
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.one_of(ALPHABET, st.sampled_from(["<|im_end|>", " the", "<|im_", "ing"])), max_size=60))
@pytest.mark.parametrize("allow_special", [True, False])
def test_compiled_tables_encode_as_the_library(compiled: Tokenizer, pieces: list[str], allow_special: bool) -> None:
    text = "".join(pieces)
    ids = compiled.encode(text, allow_special=allow_special)
    assert ids == qwen2_tokenizer().encode(text, allow_special=allow_special)
    library = qwen2_tokenizer().library
    for skip in (True, False):
        assert compiled.decode(ids, skip_special_tokens=skip) == library.decode(ids, skip_special_tokens=skip)


def test_long_texts_and_words_go_to_the_library(compiled: Tokenizer) -> None:
    full = qwen2_tokenizer()
    for text in ("a" * 300, "word " * 3000, "ab" * 127, "€" * 85):
        assert compiled.encode(text) == full.encode(text)


def test_tables_of_a_tiny_and_of_a_foreign_tokenizer(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    plain = Tokenizer(tmp_path)
    write_tokenizer_tables(tmp_path)
    tabled = Tokenizer(tmp_path)
    for text in ("hello hellohello 🦙 llll<|im_end|>", "", "he<|im_end|><|im_end|>llo"):
        assert tabled.encode(text) == plain.encode(text)
    sound = (tmp_path / TABLES).read_bytes()
    for damaged in (
        b"",
        b"PK damaged",
        sound[:-1],
        sound.replace(b"pair_ids", b"pair_idx"),
        sound.replace(b"I64", b"F64"),
    ):
        (tmp_path / TABLES).write_bytes(damaged)
        with pytest.raises(ArtifactError, match="compile the model again"):
            Tokenizer(tmp_path)
    (tmp_path / TABLES).unlink()
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    for change in ({"decoder": None}, {"model": {"type": "Unigram"}}):
        (tmp_path / "tokenizer.json").write_text(json.dumps(data | change))
        write_tokenizer_tables(tmp_path)
        assert not (tmp_path / TABLES).exists()
    (tmp_path / "tokenizer.json").write_text("{")
    write_tokenizer_tables(tmp_path)
    assert not (tmp_path / TABLES).exists()


def test_added_tokens_of_the_config(tmp_path: Path) -> None:
    added = {"265": {"content": "<tool_call>", "special": False}, "266": {"content": "<|box|>", "special": True}}
    tokenizer = Tokenizer(write_tiny(tmp_path, added_tokens_decoder=added))
    assert tokenizer.encode("<tool_call><|box|>") == [265, 266]
    assert tokenizer.decode([265, 266]) == "<tool_call>"
    wrong = {"999": {"content": "<tool_call>"}}
    with pytest.raises(CheckpointError, match="999"):
        Tokenizer(write_tiny(tmp_path, added_tokens_decoder=wrong))


def test_tokens_that_only_the_config_calls_special(tmp_path: Path) -> None:
    added = {"265": {"content": "<box>"}, "266": {"content": "<end>"}}
    tokenizer = Tokenizer(
        write_tiny(
            tmp_path, added_tokens_decoder=added, additional_special_tokens=[{"content": "<box>"}], eos_token="<end>"
        )
    )
    assert tokenizer.decode([265, 266]) == ""
    assert tokenizer.decode([265, 266], skip_special_tokens=False) == "<box><end>"
    assert tokenizer.eos_token_id == 266


def test_bos(tmp_path: Path) -> None:
    """Not by add_bos_token, which transformers 5 passes over, but by the post-processor of the file."""
    tokenizer = Tokenizer(write_tiny(tmp_path, add_bos_token=True, bos_token="<|endoftext|>"))
    bos = tokenizer.token_id("<|endoftext|>")
    assert bos not in tokenizer.encode("hello")
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "B", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"B": {"id": "B", "ids": [bos], "tokens": ["<|endoftext|>"]}},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.encode("hello")[0] == bos
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
        ("tokenizer.json", "{", "can't be read as JSON"),
        ("tokenizer.json", '{"model": {"type": "Unigram"}}', "its model is 'Unigram'"),
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
