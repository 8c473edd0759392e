"""Structured output as users ask for it: a JSON schema, a regular expression or a grammar. Part of SamplingParams.

`matcher.py` compiles it for a vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from qwench.errors import GrammarError

GrammarKind = Literal["json_schema", "json_object", "regex", "lark"]

# Characters of a grammar; schemas that people write have a few thousand. A single string literal of this length, the
# worst case, delays a step by a tenth of a second.
MAX_TEXT = {"json_schema": 1 << 15, "json_object": 0, "regex": 1 << 13, "lark": 1 << 15}
MAX_LINES = 1000  # of a lark grammar: 4000 rules, each of which names the next, are more than a thread's stack holds


@dataclass(frozen=True)
class Grammar:
    """Every finished answer is in the language of `text`. Checked when made: GrammarError says what is impossible.

    kind: json_schema (text is the schema, as JSON), json_object (any JSON object; no text), regex (Rust's dialect,
    over the whole answer) or lark (llguidance's, rule `start`; special tokens are written <|like_this|>, and the
    tokens that end an answer are added by the engine).
    is_strict: a schema that asks for more than a grammar can hold is refused; else that is left aside, and
    CompiledGrammar.left_aside names it, together with `left_aside`: what was so before the grammar was made.
    Syntax and supported features are checked when it is compiled.
    """

    kind: GrammarKind
    text: str = ""
    is_strict: bool = False
    left_aside: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.kind not in get_args(GrammarKind):
            raise GrammarError(
                f"there is no grammar of kind {self.kind!r}; there are {', '.join(get_args(GrammarKind))}"
            )
        if not isinstance(self.text, str):
            raise GrammarError(f"a grammar's text is a {type(self.text).__name__}; it must be a string")
        if bool(self.text) == (self.kind == "json_object"):
            what = "takes no text" if self.text else "needs a text"
            raise GrammarError(f"a grammar of kind {self.kind} {what}")
        object.__setattr__(self, "left_aside", tuple(self.left_aside))
        longest = MAX_TEXT[self.kind]
        if len(self.text) > longest:
            raise GrammarError(f"the grammar has {len(self.text)} characters; no more than {longest} are allowed")
        if self.kind == "lark" and self.text.count("\n") >= MAX_LINES:
            raise GrammarError(f"the grammar has more than {MAX_LINES} lines, the most allowed")
        try:
            self.text.encode()
        except UnicodeEncodeError:
            raise GrammarError("the grammar holds half a surrogate pair, which no UTF-8 can express") from None

    @classmethod
    def choice(cls, choices: Sequence[str]) -> Grammar:
        """One of these texts. Raises GrammarError."""
        if isinstance(choices, str) or not choices or not all(isinstance(choice, str) for choice in choices):
            raise GrammarError("choices must be one text or more")
        # JSON's escapes are Lark's, but for those of half surrogate pairs.
        return cls("lark", "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices))
