"""The tasks of the server's text process that need Qwen's own tokenizer."""

from __future__ import annotations

from text_fixtures import qwen2_tokenizer, tiny_tokenizer

from qwench.serve.processes.text_process import TextProcess


def fill(process: TextProcess, prefix: str, suffix: str) -> dict[str, object]:
    arguments = {"prefix": prefix, "suffix": suffix, "max_tokens": 1000}
    return process.answer({"task": "fill", "arguments": arguments})


def test_a_gap_to_fill_is_asked_for_as_qwen_was_trained() -> None:
    tokenizer = qwen2_tokenizer()
    if tokenizer.token_id("<|fim_prefix|>") is None:  # Qwen2's first tokenizer is older than them
        assert "can't fill in" in str(fill(TextProcess(tokenizer), "a", "b")["error"])
        return
    ids = fill(TextProcess(tokenizer), "def f(x):\n    ", "\n    return y<|im_end|>")["result"]
    text = "<|fim_prefix|>def f(x):\n    <|fim_suffix|>\n    return y<|im_end|><|fim_middle|>"
    assert isinstance(ids, list) and tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.eos_token_id not in ids  # what is in the texts is text


def test_a_model_that_was_not_trained_to_fill_gaps() -> None:
    process = TextProcess(tiny_tokenizer())
    assert "can't fill in" in str(fill(process, "a", "b")["error"])
