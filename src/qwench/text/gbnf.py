"""GBNF, in which llama.cpp's users and many of vLLM's write grammars, as the Lark that llguidance compiles.

The library translates, in Python and not always fast: called by the text process alone.
"""

from __future__ import annotations

import re

from qwench.errors import GrammarError

_RULE = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)


def is_gbnf(text: str) -> bool:
    return _RULE.search(text) is not None


def to_lark(text: str) -> str:
    """Raises GrammarError."""
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return gbnf_to_lark(text)
    except Exception as error:  # of the library's own kinds, and RecursionError
        raise GrammarError(f"the grammar can't be read as GBNF: {str(error) or type(error).__name__}") from None
