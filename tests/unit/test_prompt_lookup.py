"""Prompt lookup against a search through the whole text, and what it learns from being right and wrong."""

from __future__ import annotations

import random
from itertools import accumulate, pairwise
from operator import mul

import numpy as np
import pytest

from qwench.runtime.spec_decode.prompt_lookup import PromptLookup


def guesses(lookup: PromptLookup, num_tokens: int, limit: int = 8) -> list[int]:
    return [token for token, _ in lookup.propose(num_tokens, limit)]


def odds(lookup: PromptLookup, num_tokens: int, limit: int = 8) -> list[float]:
    return [probability for _, probability in lookup.propose(num_tokens, limit)]


def of(text: list[int]) -> PromptLookup:
    return PromptLookup(np.array(text, np.int32))


def latest(text: list[int]) -> tuple[int | None, int]:
    """Where the last four tokens, or else the last two, went on the last time that they occurred before, and how many
    tokens are alike there, up to 16."""
    for size in (4, 2):
        for at in range(len(text) - 1, size - 1, -1):
            if text[at - size : at] == text[-size:]:
                return at, next(n for n in range(16, 0, -1) if n <= at and text[at - n : at] == text[-n:])
    return None, 0


def next_source(text: list[int], source: int | None, length: int) -> tuple[int | None, int]:
    """The same once the last token of `text`, guessed to be text[source], is known."""
    if source is not None and text[source] == text[-1]:
        return source + 1, length + 1
    found, alike = latest(text)
    if found is None and source is not None and length >= 8:
        return source + 1, 0
    return found, alike


@pytest.mark.parametrize("vocab_size", [2, 4, 12, 100])
def test_sources_are_those_of_a_search(vocab_size: int) -> None:
    """A guess is followed while it is right; a new one is where a search through all tokens finds it, or, after many
    right ones, where the old one would have gone on."""
    rng = random.Random(vocab_size)
    words = [rng.randrange(vocab_size) for _ in range(100)]
    text = words * 2 + [rng.randrange(vocab_size) if rng.random() < 0.05 else word for word in words]
    for first in (1, 2, 3, 40):
        lookup = of(text)
        source, length = latest(text[:first])
        for end in range(first, len(text)):
            expected = [] if source is None else _continued(text[:end], source, 8)
            assert guesses(lookup, end) == expected
            source, length = next_source(text[: end + 1], source, length)


def _continued(text: list[int], source: int, count: int) -> list[int]:
    whole = list(text)
    for i in range(count):
        whole.append(whole[source + i])
    return whole[len(text) :]


def test_several_tokens_between_two_calls() -> None:
    """As after accepted guesses: the same as if it had been asked after each."""
    rng = random.Random(1)
    text = [rng.randrange(5) for _ in range(400)]
    often, seldom = of(text), of(text)
    ends = [10]
    for end in range(10, 400):
        expected = list(often.propose(end, 5))
        if end >= ends[-1]:
            assert list(seldom.propose(end, 5)) == expected
            ends.append(end + rng.choice((1, 2, 7)))
    assert len(ends) < 200


def test_no_guess_without_a_match() -> None:
    text = list(range(50))
    lookup = of(text)
    assert [guesses(lookup, end) for end in range(1, 50)] == [[]] * 49


def test_a_replaced_token() -> None:
    """Where a copy differs in one token, it is guessed to go on after it."""
    words = list(range(20))
    lookup = of([*words, *words[:10], 99, *words[11:]])
    assert guesses(lookup, 30, 3) == [10, 11, 12]
    assert guesses(lookup, 31, 3) == [11, 12, 13]
    short = of([*words, *words[:3], 99])
    assert guesses(short, 23, 1) == [3]
    assert guesses(short, 24, 3) == []


def test_circles_go_on() -> None:
    assert guesses(of([7, 1, 2, 3, 1, 2, 3]), 7, 7) == [1, 2, 3, 1, 2, 3, 1]
    assert guesses(of([5, 5, 5]), 3, 4) == [5, 5, 5, 5]


def test_limit() -> None:
    lookup = of([1, 2, 3] * 4)
    assert [len(guesses(lookup, 12, limit)) for limit in (-1, 0, 1, 5)] == [0, 0, 1, 5]


def test_the_first_tokens_of_a_text() -> None:
    for text in ([1], [1, 1], [1, 2], [1, 1, 1], [2, 1, 2, 1]):
        lookup = of(text)
        for end in range(1, len(text) + 1):
            assert len(guesses(lookup, end, 3)) in (0, 3)


def test_a_longer_match_is_likelier() -> None:
    rng = random.Random(0)
    words = [rng.randrange(1000) for _ in range(40)]
    first = [odds(of([*words, 2000, *words[: size + 3]]), 41 + size + 3)[0] for size in (0, 2, 6, 14)]
    assert first == sorted(first) and len(set(first)) >= 3
    chain = odds(of([*words, *words[:6]]), 46)
    assert chain == sorted(chain, reverse=True)
    assert all(0 < p <= 1 for p in chain)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.9, 1.0])
def test_odds_are_how_often_it_is_right(share: float) -> None:
    """In a text that goes round 40 words and says each with this probability, else something new."""
    rng = random.Random(3)
    words = [rng.randrange(1000) for _ in range(40)]
    text = words * 2 + [words[i % 40] if rng.random() < share else 1000 + i for i in range(2000)]
    lookup = of(text)
    said, happened = [], []
    for end in range(80, len(text)):
        for token, probability in lookup.propose(end, 1):
            said.append(probability)
            happened.append(token == text[end])
    assert len(said) > 10 or share == 0
    assert sum(said) == pytest.approx(sum(happened), abs=3 + 0.05 * len(said))


def test_probability_of_a_run_is_the_product() -> None:
    lookup = of([1, 2, 3, 4, 5, 6, 7, 8, 9] * 2)
    chain = odds(lookup, 18, 30)
    steps = [chain[0], *(b / a for a, b in pairwise(chain))]
    assert list(accumulate(steps, mul)) == pytest.approx(chain)
    assert steps == pytest.approx(sorted(steps))
