"""Streaming detokenisation against the decoding of the whole, ours and the tokenizers library's."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from text_fixtures import SHARED, qwen2_tokenizer, tiny_tokenizer

from qwench.text.detokenizer import Detokenizer
from qwench.text.tokenizer import Tokenizer


def check(tokenizer: Tokenizer, ids: list[int], skip: bool) -> list[str]:
    """The pieces of `ids`, after checking that they join to the decoded whole and that none shows half a character."""
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
    pieces = [detokenizer.push(token) for token in ids] + [detokenizer.flush()]
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=skip)
    assert "".join(pieces) == tokenizer.library.decode(ids, skip_special_tokens=skip)
    return pieces


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 151660), max_size=40), skip=st.booleans())
def test_random_ids_of_qwen2(ids: list[int], skip: bool) -> None:
    check(qwen2_tokenizer(), ids, skip)


@settings(max_examples=500, deadline=None)
@given(data=st.binary(max_size=24), skip=st.booleans(), special=st.integers(0, 30))
def test_random_bytes(data: bytes, skip: bool, special: int) -> None:
    """A token per byte: every broken, cut or overlong sequence there is, with a special token thrown in."""
    by_byte = {tiny_tokenizer().token_bytes(i): i for i in range(256)}
    ids = [by_byte[bytes([byte])] for byte in data]
    ids.insert(special, tiny_tokenizer().eos_token_id)
    check(tiny_tokenizer(), ids, skip)


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(256, 270) | st.integers(0xA0, 0xFF), max_size=30), skip=st.booleans())
def test_random_ids_of_a_tiny_one(ids: list[int], skip: bool) -> None:
    """Words, special tokens, ids beyond the vocabulary, and parts of characters in between."""
    check(tiny_tokenizer(), ids, skip)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=30))
def test_valid_text_never_shows_a_replacement(text: str) -> None:
    tokenizer = qwen2_tokenizer()
    ids = tokenizer.encode(text, allow_special=False)
    shown = ""
    for piece in check(tokenizer, ids, True):
        shown += piece
        assert tokenizer.decode(ids).startswith(shown)
        if "\ufffd" not in text:
            assert "\ufffd" not in piece


def test_published_vectors() -> None:
    tokenizer = qwen2_tokenizer()
    split = 0
    for vector in json.loads((SHARED / "vectors.json").read_text()):
        pieces = check(tokenizer, vector["ids"], True)
        assert "".join(pieces) == vector["text"]
        assert not any("\ufffd" in piece for piece in pieces)
        split += sum(not piece for piece in pieces[:-1])
    assert split >= 10  # characters over several tokens do occur


def test_cut_character_at_the_end() -> None:
    ids = tiny_tokenizer().encode("a🦙")[:-1]
    pieces = check(tiny_tokenizer(), ids, True)
    assert pieces[0] == "a" and set(pieces[1:-1]) == {""} and pieces[-1] == "\ufffd"
