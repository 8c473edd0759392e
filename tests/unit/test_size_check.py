"""A text that is refused by its beginning is too long as a whole."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_fixtures import qwen2_tokenizer, tiny_tokenizer

from qwench.text.tokenizer import TooLongError, check_size


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("ab é\n1,.'<|im_end|>"), max_size=60), st.integers(1, 60), st.integers(1, 40))
def test_only_what_is_too_long_is_refused(piece: str, repeats: int, max_tokens: int) -> None:
    tokenizer, text = tiny_tokenizer(), piece * repeats
    try:
        check_size(tokenizer, text, max_tokens)
    except TooLongError:
        assert len(tokenizer.encode(text)) > max_tokens


def test_a_long_text_is_refused_by_its_beginning() -> None:
    tokenizer = qwen2_tokenizer()
    check_size(tokenizer, "a fox " * 1000, 2000)
    with pytest.raises(TooLongError, match="tokens already"):
        check_size(tokenizer, "a fox " * 10_000, 2000)
    check_size(tokenizer, "狐" * 100_000, 2000)  # no border to be sure of: the tokenizer has to say
