"""Grammars made to hang or to eat memory: refused, or followed within bounds, and the answer beside them goes on."""

from __future__ import annotations

import json
import resource
import time
from typing import Any

import numpy as np
import pytest
from engine_models import GRAMMAR_VOCAB_SIZE

from qwench.errors import GrammarError
from qwench.runtime.structured_output.grammar import Grammar
from qwench.runtime.structured_output.matcher import GrammarCompiler, TokenMatcher
from qwench.text.tokenizer import Tokenizer

pytest.importorskip("llguidance", reason='grammars need pip install "qwench[structured]"')

COMPILE_S, TOKEN_S, TOKENS = 3.0, 0.5, 60  # of this thread's processor time, several times what a free machine takes


def schema(value: Any) -> Grammar:
    return Grammar("json_schema", json.dumps(value))


def nested(keyword: str, depth: int) -> Grammar:
    return Grammar("json_schema", f'{{"{keyword}":[' * depth + '{"type":"null"}' + "]}" * depth)


def chain(make: Any, size: int) -> dict[str, Any]:
    """A bomb: each definition names the next one several times."""
    definitions = {f"a{i}": make({"$ref": f"#/$defs/a{i + 1}"}) for i in range(size)}
    return {"$defs": {**definitions, f"a{size}": {"type": "integer"}}, "$ref": "#/$defs/a0"}


def rules(first: str, size: int, body: str = "{0}{1} {0}{1}") -> Grammar:
    lines = [f"{first}{i}: " + body.format(first, i + 1) for i in range(size)]
    return Grammar("lark", "\n".join([f"start: {first}0", *lines, f'{first}{size}: "b"']))


REFUSED = {
    "a tower": nested("anyOf", 200),
    "a higher tower": nested("anyOf", 1500),
    "itself": schema({"$ref": "#"}),
    "each other": schema({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
    "the network": schema({"$ref": "http://169.254.169.254/latest/meta-data"}),
    "a file": schema({"$ref": "file:///etc/passwd"}),
    "a product of choices": schema(
        {"allOf": [{"oneOf": [{"properties": {f"{i}{j}": {}}} for j in range(4)]} for i in range(12)]}
    ),
    "common multiples": schema({"allOf": [{"type": "integer", "multipleOf": p} for p in (99991, 99989, 99971, 99961)]}),
    "2^40 letters in a token": rules("R", 40),
    "brackets": Grammar("regex", "(" * 4000 + "a" + ")" * 4000),
    "brackets of a grammar": Grammar("lark", "start: " + "(" * 9000 + '"a"' + ")" * 9000),
    "a rule of itself": Grammar("lark", "start: a\na: a | a a"),
}
FOLLOWED = {
    "2^40 letters": rules("r", 40),
    "a long chain": rules("r", 990, '{0}{1} "a"'),
    "a long chain of references": schema(chain(lambda ref: ref, 900)),
    "10^12 numbers": schema(chain(lambda ref: {"type": "array", "prefixItems": [ref] * 10}, 12)),
    "10^12 conditions": schema(chain(lambda ref: {"allOf": [ref] * 10}, 12)),
    "a large enum": schema({"enum": [f"v{i}" for i in range(3000)]}),
    "many properties": schema({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(500)}}),
    "10^8 letters": Grammar("regex", "(((a{1,100}){1,100}){1,100}){1,100}"),
    "many states": Grammar("regex", "(.*a.{200})|(.*b.{200})"),
    "all of these": Grammar("regex", "(.*a.{12}&.*b.{13}&.*c.{14})"),
    "letters of all scripts": Grammar("regex", r"\p{L}{1,2000}"),
    "ambiguous": Grammar("regex", "(a|aa)+b" * 50),
    "a million items": schema({"type": "array", "items": {"type": "integer"}, "minItems": 10**5, "maxItems": 10**6}),
    "a long string": schema({"type": "string", "minLength": 10**5, "maxLength": 10**6}),
    "one long text": schema({"const": "x y" * 3000}),
    "a million letters": Grammar("lark", 'start: ("a"{1000}){1000}'),
    "a deep tree": schema({"$defs": {"n": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/n"}}, {}]}},
                           "$ref": "#/$defs/n"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    compiler = GrammarCompiler(lambda: tokenizer.vocabulary(GRAMMAR_VOCAB_SIZE))
    compiler.prepare()
    return compiler


@pytest.fixture(scope="module")
def trial(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer.byte_vocabulary)


@pytest.mark.parametrize("grammar", REFUSED.values(), ids=REFUSED)
def test_refused_soon(compiler: GrammarCompiler, trial: GrammarCompiler, grammar: Grammar) -> None:
    for each in (compiler, trial):
        start = time.thread_time()
        with pytest.raises(GrammarError):
            each.compile(grammar)
        assert time.thread_time() - start < COMPILE_S


@pytest.mark.parametrize("grammar", FOLLOWED.values(), ids=FOLLOWED)
def test_followed_within_bounds(compiler: GrammarCompiler, grammar: Grammar) -> None:
    """Up to where it gets too complex, which is an error of that answer's."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    matcher = compiler.compile(grammar).matcher()
    assert time.thread_time() - start < COMPILE_S
    slowest, rng = 0.0, np.random.default_rng(0)
    for _ in range(TOKENS):
        start = time.thread_time()
        is_over = _take_one(matcher, rng)
        slowest = max(slowest, time.thread_time() - start)
        if is_over:
            break
    assert slowest < TOKEN_S
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


def _take_one(matcher: TokenMatcher, rng: np.random.Generator) -> bool:
    """Moves on by any token that may come; whether that was the last one."""
    try:
        allowed = np.flatnonzero(matcher.allowed())
        if not len(allowed):
            return True
        assert matcher.accept(int(rng.choice(allowed)))
    except GrammarError:
        return True
    return matcher.is_over


def test_only_so_many_are_kept(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwench.runtime.structured_output.matcher.MAX_COMPILED", 3)
    compiler = GrammarCompiler(tokenizer.byte_vocabulary)
    grammars = [Grammar("regex", letter) for letter in "abcd"]
    kept = [compiler.compile(grammar) for grammar in grammars[:3]]
    assert compiler.compile(grammars[0]) is kept[0]
    compiler.compile(grammars[3])
    assert [compiler.known(grammar) is not None for grammar in grammars] == [True, False, True, True]
