"""The text process: chat templates, tokenising and grammars to be tried, one task after the other.

A template comes with the checkpoint and isn't trusted. Jinja's sandbox keeps it from reading anything; that it may loop
for ever or make a string of gigabytes is why it runs here, with a limit of memory, where the parent can kill it.
Knows no HTTP and no engine. Started by TextClient, which documents the messages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import resource
import sys
from collections.abc import Mapping
from typing import Any

from qwench.errors import ConfigError, QwenchError
from qwench.runtime.structured_output.grammar import Grammar
from qwench.runtime.structured_output.matcher import GrammarCompiler
from qwench.serve.processes.wire import Message, open_link
from qwench.text.chat import render_chat, template_variables
from qwench.text.gbnf import is_gbnf, to_lark
from qwench.text.tokenizer import Tokenizer, TooLongError, check_size

MAX_DATA_BYTES = 2 << 30  # of this process; a tokenizer takes 0.1 GiB
FIM_TOKENS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")  # Qwen2.5-Coder's, around prefix and suffix


def main() -> int:
    link, options = open_link()
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_DATA_BYTES, MAX_DATA_BYTES))
    try:
        tokenizer = Tokenizer(options["folder"])
        worker = TextProcess(tokenizer)
    except (QwenchError, OSError) as error:
        with contextlib.suppress(OSError):  # the parent may have given up already
            link.send({"failed": str(error)})
        return 2
    worker.prepare()
    link.send({"ready": {"template_variables": sorted(template_variables(tokenizer))}})
    while (message := link.receive()) is not None:
        link.send({"number": message["number"], **worker.answer(message)})
    return 0


class TextProcess:
    """Answers one message with one message."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        fim = [tokenizer.token_id(token) for token in FIM_TOKENS]
        self._fim = None if None in fim else [int(token or 0) for token in fim]
        self._grammars = GrammarCompiler(tokenizer.byte_vocabulary)

    def prepare(self) -> None:
        """Imports what the first grammar needs, if it is installed."""
        with contextlib.suppress(ConfigError):
            self._grammars.prepare()

    def answer(self, message: Message) -> Message:
        """{"result": ...}, or {"error": what is wrong with the task}."""
        try:
            return {"result": getattr(self, f"_do_{message['task']}")(**message["arguments"])}
        except QwenchError as error:
            code = "context_length_exceeded" if isinstance(error, TooLongError) else None
            return {"error": str(error), "code": code}
        except (MemoryError, RecursionError) as error:
            return {"error": f"the text is too large or too deep to work on ({type(error).__name__})"}

    def _do_encode(self, texts: list[str], add_special_tokens: bool, max_tokens: int) -> list[list[int]]:
        for text in texts:
            check_size(self._tokenizer, text, max_tokens)
        return [self._tokenizer.encode(text, add_special_tokens=add_special_tokens) for text in texts]

    def _do_encode_pairs(self, pairs: list[tuple[str, str]], max_tokens: int) -> list[list[int]]:
        for text in {text for pair in pairs for text in pair}:
            check_size(self._tokenizer, text, max_tokens)
        return [self._tokenizer.encode_pair(*pair) for pair in pairs]

    def _do_chat(self, messages: list[Mapping[str, Any]], template: dict[str, Any], max_tokens: int) -> list[int]:
        """As LLM.chat does it."""
        text = render_chat(self._tokenizer, messages, **template)
        check_size(self._tokenizer, text, max_tokens)
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _do_fill(self, prefix: str, suffix: str, max_tokens: int) -> list[int]:
        """A prompt that asks for what goes between."""
        for text in (prefix, suffix):
            check_size(self._tokenizer, text, max_tokens)
        if self._fim is None:
            raise QwenchError(f"this model can't fill in: its tokenizer has no {', '.join(FIM_TOKENS)}")
        before, after, middle = self._fim
        encode = self._tokenizer.encode
        texts = [encode(text, add_special_tokens=False, allow_special=False) for text in (prefix, suffix)]
        return [before, *texts[0], after, *texts[1], middle]

    def _do_try_grammar(self, grammar: Message) -> Message:
        """Compiles it for tokens of a byte each, which finds the same errors fast. A grammar that crashes the compiler
        crashes this process and not the engine. The result names what it leaves aside, and has GBNF as Lark."""
        given = Grammar(**grammar)
        if given.kind == "lark" and is_gbnf(given.text):
            given = dataclasses.replace(given, text=to_lark(given.text))
        left_aside = self._grammars.compile(given).left_aside
        return dataclasses.asdict(dataclasses.replace(given, left_aside=left_aside))

    def _do_decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def _do_pieces(self, ids: list[int]) -> list[str]:
        """Each token's bytes, as the characters of Latin-1."""
        return [self._tokenizer.token_bytes(token).decode("latin-1") for token in ids]


if __name__ == "__main__":
    sys.exit(main())
