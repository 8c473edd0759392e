"""Grammar -> which tokens may come next, through llguidance (the extra `structured`).

A GrammarCompiler belongs to one vocabulary and builds its token trie once. Compiled grammars are cached and copied for
each answer, which a TokenMatcher follows. Called by TextEngine, by the sampler, and by the server's text process, which
tries a grammar before the engine gets it.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qwench.errors import ConfigError, GrammarError
from qwench.runtime.structured_output.grammar import Grammar
from qwench.runtime.structured_output.json_schema import holdable

if TYPE_CHECKING:
    import llguidance

MAX_COMPILED = 64  # grammars kept
# Limits of a grammar's cost: a third to a twelfth of llguidance's own. The worst in
# tests/engine/test_hostile_grammars.py then takes a second to compile, a tenth for a token, and 30 MB an answer.
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 300_000, "step_lexer_fuel": 50_000, "step_max_items": 10_000, "max_lexer_states": 20_000,
    "max_grammar_size": 100_000, "verbose_errors": False,
}  # fmt: skip
# White space in a JSON document: none, a blank, or a line break with indentation. JSON allows any amount, but then a
# model may repeat blanks until max_tokens.
WHITESPACE = r"( |\n[ \t]{0,32})?"


@dataclass(frozen=True)
class Vocabulary:
    """tokens: the bytes of each token, by id; empty for an unused id. special_ids: all added tokens; a grammar allows
    them only where it names them. encode: text -> token ids."""

    tokens: Sequence[bytes]
    special_ids: Sequence[int]
    encode: Callable[[str], list[int]]


class GrammarCompiler:
    """Compiles grammars and caches them. Thread-safe; compiling releases the GIL, building the trie doesn't."""

    def __init__(self, vocabulary: Callable[[], Vocabulary]) -> None:
        self._vocabulary = vocabulary
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._compiled: OrderedDict[Grammar, CompiledGrammar] = OrderedDict()
        self._building, self._keeping = threading.Lock(), threading.Lock()

    def prepare(self) -> None:
        """Builds the trie unless it is built: half a second for 150 thousand tokens. Raises ConfigError without
        llguidance."""
        with self._building:
            if self._tokenizer is None:
                self._tokenizer = _build_tokenizer(self._vocabulary())

    def known(self, grammar: Grammar) -> CompiledGrammar | None:
        """The compiled grammar, if it is cached."""
        with self._keeping:
            compiled = self._compiled.get(grammar)
            if compiled is not None:
                self._compiled.move_to_end(grammar)
            return compiled

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Raises GrammarError for one that is invalid, unsupported, too complex or that no text satisfies; ConfigError
        without llguidance."""
        compiled = self.known(grammar)
        if compiled is None:
            self.prepare()
            assert self._tokenizer is not None
            compiled = CompiledGrammar(self._tokenizer, grammar)
            with self._keeping:
                self._compiled[grammar] = compiled
                while len(self._compiled) > MAX_COMPILED:
                    self._compiled.popitem(last=False)
        return compiled


class CompiledGrammar:
    """A grammar for one vocabulary; makes the matchers of answers. left_aside: what its schemas ask for beyond what it
    holds, by the names of the keywords."""

    def __init__(self, tokenizer: llguidance.LLTokenizer, grammar: Grammar) -> None:
        """Raises GrammarError."""
        import llguidance

        limits = llguidance.LLParserLimits(**LIMITS)
        text, left_aside = _for_llguidance(grammar)
        self._start = llguidance.LLMatcher(tokenizer, text, log_level=0, limits=limits)
        self._vocab_size = tokenizer.vocab_size - 1
        if self._start.is_error():
            raise GrammarError(f"{_what(grammar)}: {_first_lines(self._start.get_error())}")
        warnings = itertools.chain.from_iterable(map(_keywords, self._start.get_grammar_warnings()))
        self.left_aside = tuple(dict.fromkeys((*grammar.left_aside, *left_aside, *warnings)))
        first = self.matcher()
        if not first.allowed().any() and not first.is_complete:
            raise GrammarError(f"{_what(grammar)}: no text satisfies it")

    def matcher(self) -> TokenMatcher:
        """For one answer, from its beginning."""
        return TokenMatcher(self._start.deep_copy(), self._vocab_size)


class TokenMatcher:
    """The state of one answer in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size
        self._mask = np.zeros(-(-(vocab_size + 1) // 32), np.uint32)

    @property
    def is_complete(self) -> bool:
        """Whether the answer may end here."""
        return bool(self._matcher.is_accepting())

    @property
    def is_over(self) -> bool:
        """Whether the answer must end here, because no token can follow."""
        return bool(self._matcher.is_stopped())

    def accept(self, token: int) -> bool:
        """Whether `token` may come next; if so the state moves on. Takes microseconds, `allowed` a fraction of a
        millisecond. Raises GrammarError when that exceeds LIMITS."""
        is_next = self._matcher.try_consume_tokens([token]) == 1
        self._check()
        return is_next

    def allowed(self) -> npt.NDArray[np.bool_]:
        """[vocab_size] bool: the tokens that may come next. Where only one text can follow, just the first of its
        tokens as the tokenizer encodes it. Raises GrammarError as `accept`."""
        self._mask.fill(0)
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        if self._matcher.is_error() and "NoExtension" not in self._matcher.get_error():  # that is an empty mask
            self._check()
        bits = np.unpackbits(self._mask.view(np.uint8), count=self._vocab_size, bitorder="little")
        return bits.view(np.bool_)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"the grammar is too complex: {_first_lines(self._matcher.get_error())}")


def _build_tokenizer(vocabulary: Vocabulary) -> llguidance.LLTokenizer:
    """The vocabulary for llguidance, with one extra id as its end token: real end tokens differ between requests, and
    the sampler handles them."""
    try:
        import llguidance
    except ImportError:
        raise ConfigError(
            'a grammar, a JSON schema or a regular expression needs llguidance: pip install "qwench[structured]"'
        ) from None
    num_tokens = len(vocabulary.tokens)
    view = _WrappedVocabulary(vocabulary)
    wrapped = llguidance.TokenizerWrapper(view)
    tokenizer = llguidance.LLTokenizer(wrapped, n_vocab=num_tokens + 1, eos_token=num_tokens)
    wrapped.tokens = view.tokens = ()  # they are in the trie now
    return tokenizer


class _WrappedVocabulary:
    """A Vocabulary under the names that llguidance reads."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id, self.bos_token_id = len(vocabulary.tokens), None
        self.tokens: Sequence[bytes] = [*vocabulary.tokens, b"<|end of the grammar|>"]
        self.special_token_ids = [*vocabulary.special_ids, self.eos_token_id]
        self._encode = vocabulary.encode
        self._names = frozenset(vocabulary.special_ids)
        self._byte_ids = {token: i for i, token in enumerate(vocabulary.tokens) if len(token) == 1}

    def __call__(self, text: Any) -> list[int]:
        """Tokens of a text that the grammar forces; byte by byte where the tokenizer makes special tokens of it."""
        if not isinstance(text, str):
            raise TypeError("only str")  # so llguidance learns that bytes won't do
        ids = self._encode(text)
        if all(token < self.eos_token_id and token not in self._names for token in ids):
            return ids
        return [self._byte_ids[bytes([byte])] for byte in text.encode()]


def _for_llguidance(grammar: Grammar) -> tuple[str, list[str]]:
    """For the library, and what was left aside. Raises GrammarError for a schema that isn't JSON."""
    from llguidance import LLMatcher

    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.text), []
    if grammar.kind == "lark":
        return LLMatcher.grammar_from_lark(grammar.text), []
    text, left_aside = _schema(grammar)
    try:
        return LLMatcher.grammar_from_json_schema(
            text, defaults={"whitespace_pattern": WHITESPACE}, overrides={"lenient": not grammar.is_strict}
        ), left_aside
    except ValueError as error:
        raise GrammarError(f"the JSON schema is no JSON object: {error}") from None


def _schema(grammar: Grammar) -> tuple[str, list[str]]:
    """Of a grammar that is one, without what no grammar holds unless that is to be refused. Raises GrammarError."""
    if grammar.kind == "json_object":
        return '{"type": "object"}', []
    try:
        schema, left_aside = holdable(json.loads(grammar.text))
    except (ValueError, RecursionError):
        return grammar.text, []  # the library says what is wrong
    if grammar.is_strict and "minProperties" in left_aside:
        raise GrammarError(
            "the JSON schema can't be used: minProperties counts names that it doesn't give; name them in required, or "
            "set it to one more than these"
        )
    return (grammar.text, []) if grammar.is_strict else (json.dumps(schema, ensure_ascii=False), left_aside)


def _keywords(warning: str) -> list[str]:
    """The names of the keywords that the library says it has left aside, once or "(2 times)"."""
    warning = re.sub(r" \(\d+ times\)$", "", warning)
    _, _, names = warning.partition("Unimplemented keys: ")
    if names:
        return [str(name) for name in json.loads(names)]
    _, _, name = warning.partition("Unknown format: ")
    return [f"format.{name}"] if name else [warning.split()[0]]


def _what(grammar: Grammar) -> str:
    return {
        "json_schema": "the JSON schema can't be used", "json_object": "JSON objects can't be had",
        "regex": "the regular expression can't be used", "lark": "the grammar can't be used",
    }[grammar.kind]  # fmt: skip


def _first_lines(message: str) -> str:
    """llguidance quotes whole grammars: what it says first is enough."""
    return " ".join(message.replace("<non-verbose/>", "").split())[:300]
