"""A tiny text grammar: `[a|b]` chooses, `$name` substitutes, and the result is made into proper sentences.

It knows nothing about what the corpus says; `stories`, `prose` and `chat` call it with their own templates.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_VARIABLE = re.compile(r"\$([a-z_]+)")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiouAEIOU])(?!one\b|use|uni|eu|One\b|Uni|Eu)")
_SENTENCE_START = re.compile(r"(^\"?|[.!?] +|\n\"?|[.!?] \"|[:,] \"|\.\" )([a-z])")


def words(table: str, separator: str | None = None) -> list[str]:
    """A table written as one string, as a list."""
    return table.split(separator)


def expand(rng: random.Random, template: str, values: Mapping[str, str] | None = None) -> str:
    """Resolve every `[a|b|c]` (innermost first), then every `$name`; choices may be nested or empty."""
    while True:
        template, count = _CHOICE.subn(lambda match: rng.choice(match.group(1).split("|")), template)
        if not count:
            break
    if values is not None:
        template = _VARIABLE.sub(lambda match: values[match.group(1)], template)
    return template


def tidy(text: str) -> str:
    """Fix `a` before a vowel, doubled spaces and the capital at the start of each sentence."""
    text = _ARTICLE.sub(lambda match: match.group(1) + "n ", text)
    text = re.sub(r" {2,}", " ", text).replace(" .", ".").replace(" ,", ",").strip()
    return _SENTENCE_START.sub(lambda match: match.group(1) + match.group(2).upper(), text)


def say(rng: random.Random, template: str, **values: str) -> str:
    """Expand a template and tidy the outcome: what nearly every caller wants."""
    return tidy(expand(rng, template, values))


def listing(items: Sequence[str], last: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(items) < 2:
        return "".join(items)
    return ", ".join(items[:-1]) + f" {last} {items[-1]}"


def plain(rng: random.Random, text: str) -> str:
    """Type a user's line the way people do: sometimes without capitals or closing punctuation."""
    style = rng.random()
    if style < 0.45:
        return text
    if style < 0.65:
        return text.rstrip("?.!")
    if style < 0.85:
        return text.lower().rstrip("?.!")
    return text.lower()


def ask(rng: random.Random, template: str, **values: str) -> str:
    """A user's line from a template, sometimes with a polite opening."""
    line = expand(rng, template, values)
    if rng.random() < 0.15:
        line = rng.choice(["hey, ", "hi, ", "can you tell me: ", "I have a question. ", "ok, "]) + line
    return plain(rng, tidy(line))


def ask_for(rng: random.Random, template: str, **values: str) -> str:
    """A user's line that asks for something to be done ("tell me", "name", "write")."""
    line = expand(rng, template, values)
    opening = rng.choice(["", "", "", "please ", "can you ", "could you ", "could you please ", "now "])
    mark = "?" if opening.startswith(("can", "could")) else "."
    ending = " please" if not opening and rng.random() < 0.12 else ""
    return plain(rng, tidy(opening + line + ending + mark))


_ONES = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_TENS = words("twenty thirty forty fifty sixty seventy eighty ninety")


def number_word(number: int) -> str:
    """The English word for 0..99."""
    if number < 20:
        return _ONES[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")
